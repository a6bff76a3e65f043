"""Each edit alone: the model is as before, an interrupted run goes on, hard edits can be edited again."""

import json

import pytest

from lke_lightning.cli import main
from lke_lightning.data import JsonLines, as_fact, own_request
from lke_lightning.edits import EditRequest, Probe


@pytest.fixture(scope="module")
def given(small_run, tmp_path_factory):
    """Arguments of nine edits, of which the last restates the first one's fact, and a text of two sentences."""
    text = tmp_path_factory.mktemp("text") / "texts.json"
    text.write_text(json.dumps([{"Text": "Ana guitar river"}, {"Text": "the city was born"}]))
    at = small_run.index("--data.batch_size")
    return ["singly", *small_run[1:at], *small_run[at + 2 :], "--text", str(text), "--ruined", "1.001"]


def lines(folder):
    return list(map(json.loads, (folder / "singly.jsonl").read_text().splitlines()))


def without_seconds(line):
    return {name: value for name, value in line.items() if name != "seconds"}


def test_no_edit_meets_another_and_an_interrupted_run_goes_on(given, tmp_path, capsys):
    main([*given, "--output", str(tmp_path / "whole")])
    assert "9 edits of JsonLines" in capsys.readouterr().out
    header, *whole = lines(tmp_path / "whole")
    assert header["method"] == "ENCORE"
    assert [line["batch"] for line in whole] == list(range(9))
    summary = json.loads((tmp_path / "whole" / "singly.json").read_text())
    assert summary["edits"] == summary["batches"] == 9
    assert summary["me_ppl"]["worst"] == max(line["perplexity"] for line in whole)
    assert all(line["norm_growth"] > 1 for line in whole)

    main([*given, "--data.limit", "3", "--output", str(tmp_path / "few")])
    for one, other in zip(whole, lines(tmp_path / "few")[1:], strict=False):
        assert without_seconds(one) == without_seconds(other)

    half = tmp_path / "half"
    half.mkdir()
    kept = (tmp_path / "whole" / "singly.jsonl").read_text().splitlines(keepends=True)
    (half / "singly.jsonl").write_text("".join(kept[:5]) + kept[5][:40])
    main([*given, "--output", str(half)])
    for one, other in zip(whole, lines(half)[1:], strict=True):
        assert one["scores"].keys() == other["scores"].keys()
        assert other["perplexity"] == pytest.approx(one["perplexity"], rel=1e-6)  # the memory returns to rounding

    with pytest.raises(SystemExit, match="another method, model or data"):
        main([*given, "--data.limit", "3", "--output", str(half)])


def test_hard_edits_are_facts_that_can_be_read(given, tmp_path):
    main([*given, "--data.limit", "4", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "singly.json").read_text())["me_ppl"]
    ruined = [line["perplexity"] > found["above"] for line in lines(tmp_path)[1:]]
    assert found["ruined"] == sum(ruined) > 0
    stream = JsonLines(str(tmp_path / "hard.jsonl"))
    stream.setup("fit")
    assert [request.id for request in stream.requests] == found["hard"]


def test_a_fact_is_the_request_again():
    request = EditRequest(
        id="a", prompt="{} is", target="x", subject="Ana", original="y", paraphrases=("Ana was",), aliases=("X",),
        neighborhood=(Probe("Bo is", "z", ("Z",)),), weight=2.0,
    )  # fmt: skip
    assert own_request(json.loads(json.dumps(as_fact(request)))) == request
    assert set(as_fact(EditRequest(id="a", prompt="p", target="t"))) == {"id", "prompt", "target", "weight"}


@pytest.mark.parametrize("method", ["encore", "ft-l", "grace"])
def test_an_edit_does_the_same_whatever_came_before_it(given, small_world, method, tmp_path):
    options = [part for part in given if part not in ("-c", "configs/method/encore.yaml", "tests/conf/tiny.yaml")]
    if method == "grace":
        at = options.index("--stage_two.statistics")
        options = [*options[:at], *options[at + 8 :]]
    first, second, third = (small_world / "facts.jsonl").read_text().splitlines()[:3]
    found = []
    for name, facts in (("one", [first, second]), ("other", [third, second])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(facts))
        data = ["--data.path", str(tmp_path / f"{name}.jsonl"), "--output", str(tmp_path / name)]
        files = ["-c", f"configs/method/{method}.yaml"]
        files += ["-c", "tests/conf/tiny.yaml"] * (method == "encore")  # its own strength follows from the first facts
        main([options[0], *files, *options[1:], *data])
        found.append([without_seconds(line) for line in lines(tmp_path / name)[1:]])
    (one, this), (other, again) = found
    assert one["scores"] != other["scores"] or one["perplexity"] != other["perplexity"]
    assert this["scores"] == again["scores"]
    assert this["perplexity"] == pytest.approx(again["perplexity"], rel=1e-6)
