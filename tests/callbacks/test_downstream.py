"""Downstream measurements during a run: when, what is written, and what a continued run does not measure again."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lke_lightning import checkpoints
from lke_lightning.cli import main
from lke_lightning.evaluation.downstream import FewShot
from lke_lightning.evaluation.harness import LmEval
from lke_lightning.testing import WORDS


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "sst2.jsonl"
    records = [{"sentence": f"{WORDS[i % 20]} the {WORDS[3 * i % 20]}", "label": i % 2} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, records)))
    return json.dumps([{"class_path": "SST2", "init_args": {"path": str(path), "shots": 1}}])


def measured(small_run, folder, *options):
    main([*small_run, *options, "--trainer.default_root_dir", str(folder)])
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    path = folder / "downstream.json"
    return json.loads(path.read_text()) if path.exists() else None, entries


def at(card):
    return [measurement["edits"] for measurement in card["measurements"]]


def results(card):
    return {measurement["edits"]: measurement["results"] for measurement in card["measurements"]}


def test_without_tasks_nothing_is_measured_or_written(small_run, tmp_path):
    card, entries = measured(small_run, tmp_path, "--data.limit", "2")
    assert card is None
    assert not [entry for entry in entries if entry["event"] == "downstream"]


def test_before_during_and_after(small_run, tasks, tmp_path, capsys):
    card, entries = measured(small_run, tmp_path, "--downstream.tasks", tasks, "--downstream.every_n_edits", "3")
    assert at(card) == [0, 4, 6, 9]  # batches of two: the third, the sixth and the ninth edit are in these
    events = [entry for entry in entries if entry["event"] == "downstream"]
    assert [event["edits"] for event in events] == [0, 4, 6, 9]
    assert {event["edits"]: event["tasks"] for event in events} == results(card)
    assert card["tasks"]["SST2"]["shots"] == 1
    assert card["measurements"][0]["mean_f1"] == card["measurements"][0]["results"]["SST2"]["f1"]
    assert card["measurements"][0]["results"]["SST2"]["items"] == 20
    assert "Downstream tasks" in capsys.readouterr().out


def test_measuring_changes_no_edit(small_run, tasks, tmp_path):
    for name, options in {
        "free": (),
        "measured": ("--downstream.tasks", tasks, "--downstream.every_n_edits", "2"),
    }.items():
        measured(small_run, tmp_path / name, *options)
    free, watched = (checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("free", "measured"))
    for name, value in free["state_dict"].items():
        assert torch.equal(value, watched["state_dict"][name])


def test_a_continued_run_measures_only_what_is_missing(small_run, tasks, tmp_path, monkeypatch):
    options = ("--downstream.tasks", tasks, "--downstream.every_n_edits", "2")
    whole, _ = measured(small_run, tmp_path / "whole", *options)
    asked, measure = [], FewShot.measure

    def interrupted(task, model, max_tokens):
        asked.append(task.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return measure(task, model, max_tokens)

    monkeypatch.setattr(FewShot, "measure", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        measured(small_run, tmp_path / "parts", *options)
    assert at(json.loads((tmp_path / "parts" / "downstream.json").read_text())) == [0, 2, 4]
    asked.clear()
    monkeypatch.setattr(FewShot, "measure", lambda *args: (asked.append(args[0].name), measure(*args))[1])
    parts, entries = measured(small_run, tmp_path / "parts", *options, "--ckpt_path", "last")
    assert len(asked) == len(at(whole)) - 3  # 0, 2 and 4 edits are in the checkpoint that was written after 4
    assert results(parts) == results(whole)
    assert [entry["edits"] for entry in entries if entry["event"] == "downstream"] == at(whole)


def test_a_task_that_is_added_later_is_measured_on_the_unedited_model_too(small_run, tasks, tmp_path):
    measured(small_run, tmp_path, "--data.limit", "4")
    options = ("--data.limit", "4", "--downstream.tasks", tasks)
    late, _ = measured(small_run, tmp_path, *options, "--ckpt_path", "last")
    fresh, _ = measured(small_run, tmp_path / "fresh", *options)
    assert at(fresh) == [0, 4]
    assert results(late)[0] == results(fresh)[0]


def test_validate_measures_a_checkpoint(small_run, tasks, tmp_path):
    card, _ = measured(small_run, tmp_path / "run", "--downstream.tasks", tasks)
    newest = checkpoints.newest(tmp_path / "run")
    main([
        "validate", *small_run[1:], "--downstream.tasks", tasks, "--ckpt_path", str(newest),
        "--trainer.default_root_dir", str(tmp_path / "again"),
    ])  # fmt: skip
    again = json.loads((tmp_path / "again" / "downstream.json").read_text())
    assert results(again)[9] == results(card)[9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--downstream.tasks", '[{"class_path": "SST2", "init_args": {"path": "nowhere.jsonl"}}]'], "nowhere.jsonl"),
        (["--downstream.tasks", '["SST2", "SST2"]'], "SST2 twice"),
        (["--downstream.tasks", '[{"class_path": "MMLU", "init_args": {"shots": 6}}]'], "choose 0 to 5"),
        (["--downstream.every_n_edits", "-1"], "every_n_edits is -1"),
    ],
)
def test_bad_sections_are_refused(small_run, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*small_run, *options, "--trainer.default_root_dir", str(tmp_path)])
    assert message in f"{caught.value} {capsys.readouterr().err}"


def stub_harness(monkeypatch, seen):
    """A harness of three modules that does what the real one is known to do to its surroundings."""

    def evaluate(model, tasks, **options):
        torch.manual_seed(1)
        model.tokenizer.pad_token = "<s>"
        seen.append((model, tasks, options))
        return {"results": {tasks[0]: {"alias": tasks[0], "acc,none": 0.5, "acc_stderr,none": "N/A"}}}

    manager = SimpleNamespace(all_tasks=["tiny"])
    monkeypatch.setattr("lke_lightning.evaluation.harness.find_spec", lambda name: name)
    root, models, hf, known = (
        ModuleType(f"lm_eval{part}") for part in ("", ".models", ".models.huggingface", ".tasks")
    )
    root.simple_evaluate, known.TaskManager = evaluate, lambda include_path=None: manager
    hf.HFLM = lambda **options: SimpleNamespace(**options)
    for module in (root, models, hf, known):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_harness_gets_the_live_network_and_leaves_no_trace(small_run, tmp_path, monkeypatch):
    seen = []
    stub_harness(monkeypatch, seen)
    tasks = '[{"class_path": "LmEval", "init_args": {"task": "tiny", "limit": 3}}]'
    card, _ = measured(small_run, tmp_path / "stub", "--downstream.tasks", tasks, "--data.limit", "2")
    assert results(card) == {edits: {"lm-eval:tiny": {"acc,none": 0.5}} for edits in (0, 2)}
    assert (seen[0][1], seen[0][2]["limit"]) == (["tiny"], 3)
    assert seen[0][0].pretrained is seen[1][0].pretrained
    measured(small_run, tmp_path / "free", "--data.limit", "2")
    one, other = (checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("stub", "free"))
    assert torch.equal(one["editing"]["random"]["torch"], other["editing"]["random"]["torch"])
    for name, value in other["state_dict"].items():
        assert torch.equal(value, one["state_dict"][name])


def test_without_the_harness_a_run_does_not_begin(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("lke_lightning.evaluation.harness.find_spec", lambda name: None)
    tasks = '[{"class_path": "LmEval", "init_args": {"task": "tiny"}}]'
    with pytest.raises(SystemExit, match="lke-lightning\\[eval\\]"):
        measured(small_run, tmp_path, "--downstream.tasks", tasks)


def test_the_real_harness_asks_the_live_model(small_world, tmp_path):
    """A task of our own, of a local file, through the harness itself, where it is installed."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'lke-lightning[eval]')")
    from lke_lightning.evaluation.teacher_forced import continuation_nll
    from lke_lightning.model.language_model import LanguageModel, load

    records = [{"asked": f"the {word} is", "right": i % 2} for i, word in enumerate(WORDS[:6])]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "tiny_choice.yaml").write_text(
        "task: tiny_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'records.jsonl'}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{asked}}"\ndoc_to_choice: ["guitar", "piano"]\ndoc_to_target: right\n'
        "metric_list:\n  - metric: acc\n"
    )
    model = LanguageModel(*load(str(small_world / "model")), [0, 1])
    torch.manual_seed(5)
    state, padding = torch.get_rng_state(), model.text.tokenizer.pad_token
    found = LmEval("tiny_choice", include_path=str(tmp_path)).measure(model, 1000)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.text.tokenizer.pad_token == padding
    nll, _ = continuation_nll(model, [(r["asked"], word) for r in records for word in ("guitar", "piano")])
    lengths = torch.tensor([len(ids) for _, ids in model.text.continuations(
        [(r["asked"], word) for r in records for word in ("guitar", "piano")]
    )])  # fmt: skip
    said = (nll * lengths).reshape(-1, 2).argmin(1).tolist()
    assert found["acc,none"] == pytest.approx(sum(s == r["right"] for s, r in zip(said, records, strict=True)) / 6)
