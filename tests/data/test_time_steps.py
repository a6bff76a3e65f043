"""A stream in time steps: where batches end, what is scored after each step, and that an interrupted run ends alike."""

import json

import pytest

from lke_lightning.cli import main
from lke_lightning.data import RequestList, TimeSteps
from lke_lightning.edits import EditError, EditRequest
from tests.faults.kills import differences, end_of


def requests(*names):
    return RequestList([EditRequest(id=name, prompt=f"{name} is", target="x") for name in names])


def stream(**options):
    made = TimeSteps([requests(*"abcdefg"), requests(*"xyz")], **options)
    made.setup("fit")
    return made


def test_a_batch_ends_with_its_step_and_a_source_may_be_several_steps():
    made = stream(step_size=4, batch_size=3)
    assert [request.id for request in made.requests[6:]] == ["1-g", "2-x", "2-y", "2-z"]
    assert [[request.id[2:] for request in step] for step in made.steps] == [list("abcd"), list("efg"), list("xyz")]
    assert [list(batch) for batch in made.batches] == [[0, 1, 2], [3], [4, 5, 6], [7, 8, 9]]
    assert [len(step) for step in stream().steps] == [7, 3]
    assert [len(step) for step in stream(limit=8, step_size=4).steps] == [4, 3, 1]


def test_after_a_step_it_is_due_whole_and_each_earlier_one_in_the_same_sample():
    made = stream(step_size=3, sample=2, batch_size=2)
    due = [[request.id for request in made.due(count)] for count in range(1, len(made.batches) + 1)]
    assert [names for names in due if not names] == 4 * [[]]  # inside of steps, and at the end, which scores all
    first, second, third = (names for names in due if names)
    assert first == ["1-a", "1-b", "1-c"]
    assert (len(second), second[2:]) == (5, ["1-d", "1-e", "1-f"])
    assert set(second[:2]) < set(first)
    assert (third[:2], len(third[2:4]), third[4:]) == (second[:2], 2, ["1-g"])
    assert not RequestList([]).due(1)


@pytest.mark.parametrize("options", [{"sources": []}, {"sample": 0}, {"step_size": 0}])
def test_a_stream_without_steps_is_refused(options):
    with pytest.raises(EditError, match="at least 1"):
        TimeSteps(**{"sources": [requests("a")], **options})


@pytest.fixture(scope="module")
def arguments(small_run, small_world, tmp_path_factory):
    facts, folder = (small_world / "facts.jsonl").read_text().splitlines(), tmp_path_factory.mktemp("steps")
    for name, part in (("old", facts[:5]), ("new", facts[5:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part))
    readers = [{"class_path": "JsonLines", "init_args": {"path": str(folder / f"{n}.jsonl")}} for n in ("old", "new")]
    given = {"class_path": "TimeSteps", "init_args": {"sources": readers, "sample": 2, "batch_size": 2}}
    (folder / "data.yaml").write_text(json.dumps({"data": given}))
    at = small_run.index("--data")
    return ["fit", "-c", str(folder / "data.yaml"), *small_run[1:at], *small_run[at + 6 :]]


def test_each_step_is_followed_over_the_later_ones(arguments, tmp_path):
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "whole")])
    card = json.loads((tmp_path / "whole" / "scorecard.json").read_text())
    assert card["data"] == "JsonLines in time steps"
    matrix = card["retention_matrix"]
    assert matrix["evaluated_after"] == [5, 9]
    (first, later), (old, new) = matrix["time_steps"]
    assert (first["edits"], later) == (5, None)
    assert (old["edits"], new["edits"]) == (4, 4)  # the last edit restates the fact of the first one
    assert old["efficacy"] == pytest.approx(sum(part["accuracy"] * part["edits"] for part in card["retention"][:3]) / 4)

    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "stopped"), "--trainer.max_steps", "3"])
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "stopped"), "--ckpt_path", "last"])
    assert differences(end_of(tmp_path / "whole"), end_of(tmp_path / "stopped")) == []
