"""The scorecard of a whole run with everything measured, on a tiny model."""

import itertools
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from lke_lightning import checkpoints
from lke_lightning.callbacks import measuring
from lke_lightning.callbacks.scorecard import Scorecard
from lke_lightning.cli import main
from lke_lightning.data.formats import CounterFact
from lke_lightning.edits import EditError
from lke_lightning.evaluation.generated import complete
from lke_lightning.evaluation.judge import Judge
from lke_lightning.evaluation.packing import unpack
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.model.language_model import LanguageModel, load
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer
from tests.faults.kills import differences

NAMES = ["Ana", "Bob", "Cyd", "Dan", "Eve", "Fay"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    texts = [f"{name} {word}" for name in NAMES for word in WORDS]
    tiny_network("llama").float().save_pretrained(folder / "model")
    tiny_tokenizer(texts).save_pretrained(folder / "model")
    records = [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": "{} was born in the",
                "subject": name,
                "target_new": {"str": "city"},
                "target_true": {"str": "river"},
                "relation_id": "born",
            },
            "paraphrase_prompts": [f"The city of {name} is the"],
            "neighborhood_prompts": [f"{other} was born in the" for other in ("Gus", "Hal")],
            "generation_prompts": [f"{name} was", f"The river of {name}"],
            "two_hop": [{"question": f"The capital of {name} is", "answer_new": "the river", "answer_true": "a"}],
        }
        for i, name in enumerate(NAMES)
    ]
    (folder / "facts.json").write_text(json.dumps(records))
    (folder / "text.txt").write_text("\n".join(" ".join(texts[i:] + texts[:i]) for i in range(0, 40, 2)))
    return folder


def fit(world, out, *more):
    main([
        "fit", "-c", "configs/method/encore.yaml", "-c", "tests/conf/tiny.yaml",
        "--model.pretrained", str(world / "model"), "--model.layers", "[0,1]", "--model.dtype", "float64",
        "--data", "CounterFact", "--data.path", str(world / "facts.json"), "--data.batch_size", "2",
        "--stage_two.statistics", "KeyStatistics", "--stage_two.statistics.corpus", str(world / "text.txt"),
        "--stage_two.statistics.tokens", "2000", "--stage_two.statistics.cache_dir", str(world / "cache"),
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--trainer.default_root_dir", str(out), *more,
    ])  # fmt: skip


class Agrees(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    server = HTTPServer(("127.0.0.1", 0), Agrees)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    fit(world, out, "--scorecard.generated", "true", "--scorecard.generated_tokens", "5", "--scorecard.fluency", "true",
        "--scorecard.judge.url", f"http://127.0.0.1:{server.server_port}/v1", "--scorecard.judge.model", "any",
        "--trainer.val_check_interval", "1", "--trainer.check_val_every_n_epoch", "null")  # fmt: skip
    server.shutdown()
    server.server_close()
    return out


@pytest.fixture(scope="module")
def card(run):
    return json.loads((run / "scorecard.json").read_text())


def test_every_protocol_has_its_own_place(card):
    for moment in ("before", "just_after", "final"):
        part = card[moment]
        assert set(part["teacher_forced"]) == {"efficacy", "paraphrase", "neighborhood", "two_hop", "locality"}
        assert set(part["generated"]) == {"efficacy", "paraphrase", "neighborhood", "two_hop", "locality"}
        assert {part["generated"][kind]["judged"] for kind in ("efficacy", "two_hop")} == {1.0}
        assert part["teacher_forced"]["efficacy"]["whole_answer"] == part["efficacy"]["accuracy"]
        low, high = part["intervals"]["generated"]["neighborhood"]["exact"]
        assert 0 <= low <= part["generated"]["neighborhood"]["exact"] <= high <= 1
    assert card["before"]["teacher_forced"]["locality"] == {"token_accuracy": 1, "whole_answer": 1}
    assert card["before"]["generated"]["locality"]["exact"] == 1
    assert card["before"]["texts"]["fluency"] > 0
    assert "consistency" not in card["before"]["texts"]  # these records have no reference texts
    assert "texts" not in card["just_after"]
    assert card["seconds"]["generation"] > 0


def test_examples_are_what_the_edited_model_says(card, world, run):
    main(["export", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--output", str(run / "edited")])
    model = LanguageModel(*load(str(run / "edited"), "float64"), [0])
    told = card["generated"]
    assert (told["protocol"], told["new_tokens"], told["judge"]["model"]) == ("generated", 5, "any")
    assert [example["id"] for example in told["examples"]] == ["0", "1", "2", "3", "4"]
    prompts = [example["prompt"] for example in told["examples"]]
    assert complete(model, prompts, 5) == [example["said"] for example in told["examples"]]


def test_what_was_kept_is_told_for_every_evaluation(card, run):
    matrix = card["retention_matrix"]
    assert matrix["evaluated_after"] == [2, 4, 6]
    for measure in ("success", "accuracy", "generated_exact"):
        assert [len(row) for row in matrix[measure]] == [1, 2, 3]
    assert matrix["success"][-1] == [part["success"] for part in card["retention"]]
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    events = [event for event in events if event["event"] == "evaluation"]
    assert [event["edits"] for event in events] == [2, 4, 6]
    assert [event["efficacy_by_batch"]["accuracy"] for event in events] == matrix["accuracy"]
    assert events[-1]["generated_efficacy_exact"] == card["final"]["generated"]["efficacy"]["exact"]


def test_the_checkpoint_holds_tensors_and_plain_types(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Scorecard"]
    assert set(saved["said"]) == {str(i) for i in range(len(NAMES))}
    again = Scorecard()
    again.load_state_dict(saved)
    restored = again.state_dict()
    assert restored.pop("seconds") == saved.pop("seconds")
    assert differences(restored, saved) == []


def test_a_checkpoint_of_two_hundred_edits_has_as_many_members_as_one_of_ten(small_run, tmp_path):
    members = []
    for count in (10, 200):
        facts = [
            {"prompt": f"{name} {word} {other} the", "subject": name, "target": "city", "original": "river"}
            for name, word, other in itertools.islice(itertools.product(NAMES, WORDS, WORDS), count)
        ]
        path = tmp_path / f"{count}.jsonl"
        path.write_text("\n".join(map(json.dumps, facts)))
        main([*small_run, "--data.path", str(path), "--data.batch_size", "100", "--stage_one.max_steps", "1",
              "--trainer.default_root_dir", str(tmp_path / str(count))])  # fmt: skip
        with zipfile.ZipFile(checkpoints.newest(tmp_path / str(count))) as checkpoint:
            members.append(len(checkpoint.namelist()))
    assert members[0] == members[1]


def test_probabilities_are_told(card):
    facts = card["probability"]
    assert facts["protocol"] == "teacher-forced"
    assert facts["edited_just_after"]["facts"] == len(NAMES)
    assert sum(facts["edited_final"]["per_token"]["histogram"]) == len(NAMES)


def test_by_default_nothing_is_generated(world, tmp_path, capsys):
    fit(world, tmp_path, "--data.limit", "2")
    card = json.loads((tmp_path / "scorecard.json").read_text())
    assert "generated" not in card
    assert "generated" not in card["final"]
    assert "generation" not in card["seconds"]
    assert "generated;" not in capsys.readouterr().out


def test_the_printed_tables_name_their_protocols(world, tmp_path, capsys):
    fit(world, tmp_path, "--data.limit", "2", "--scorecard.generated", "true", "--scorecard.generated_tokens", "2")
    said = capsys.readouterr().out
    assert "teacher-forced; success (accuracy)" in said
    assert "teacher-forced; correct tokens (whole answers)" in said
    assert "generated; exact (prefix)" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": Judge("http://localhost:9", "m")}, "set scorecard.generated"),
        ({"generated": True, "generated_tokens": 0}, "generated_tokens"),
        ({"one_in": 0}, "scorecard.one_in"),
        ({"generated": True, "generated_one_in": 0}, "scorecard.generated_one_in"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(EditError, match=message):
        Scorecard(**options)


def test_a_sample_of_the_edits_is_scored_and_a_smaller_one_answers(world, tmp_path):
    fit(world, tmp_path, "--scorecard.one_in", "2", "--scorecard.generated", "true", "--scorecard.generated_tokens",
        "3", "--scorecard.generated_one_in", "2", "--trainer.val_check_interval", "2",
        "--trainer.check_val_every_n_epoch", "null")  # fmt: skip
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Scorecard"]
    for moment in ("unedited", "just_after", "final"):
        assert saved[moment]["ids"] == ["0", "2", "4"]
        assert (saved[moment]["kinds"]["efficacy/generated"]["lengths"] >= 0).tolist() == [True, False, True]
    card = json.loads((tmp_path / "scorecard.json").read_text())
    assert card["edits"] == 6
    assert [part["edits"] for part in card["retention"]] == [1, 1, 1]
    assert card["retention_matrix"]["evaluated_after"] == [4, 6]
    assert [value is None for value in card["retention_matrix"]["generated_exact"][-1]] == [False, True, False]
    assert list(saved["said"]) == ["0", "4"]
    entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    scored = [entry["id"] for entry in entries if "success_just_after" in entry]
    assert scored == ["0", "2", "4"]
    assert sum(entry["event"] == "edit" for entry in entries) == 6


def test_a_batch_is_not_scored_twice_by_the_same_weights_nor_before_the_run_by_a_second_one(
    world, tmp_path, monkeypatch
):
    monkeypatch.setenv("LKE_CACHE", str(tmp_path / "cache"))
    asked = []
    monkeypatch.setattr(
        measuring, "score", lambda model, some, most: asked.append([r.id for r in some]) or score(model, some, most)
    )
    batches = [["0", "1"], ["2", "3"], ["4", "5"]]
    fit(world, tmp_path / "one")
    assert asked == [*batches, *batches, *batches[:2]]
    asked.clear()
    fit(world, tmp_path / "two", "--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null")
    assert asked == [*batches[:2], batches[0], batches[2], *batches[:2]]
    one, two = (json.loads((tmp_path / name / "scorecard.json").read_text()) for name in ("one", "two"))
    assert [one.pop("before_from_cache"), two.pop("before_from_cache")] == [0, 6]
    for moment in ("before", "just_after", "final"):
        assert one[moment] == two[moment]
    saved = torch.load(tmp_path / "one/checkpoints/last.ckpt", weights_only=True)["callbacks"]["Scorecard"]
    main(["export", "--ckpt_path", str(tmp_path / "one/checkpoints/last.ckpt"), "--output", str(tmp_path / "edited")])
    edited = LanguageModel(*load(str(tmp_path / "edited"), "float64"), [0])
    last = CounterFact(str(world / "facts.json"))
    last.setup("fit")
    [expected, _] = score(edited, last.requests[4:])
    torch.testing.assert_close(unpack(saved["final"])["4"]["efficacy"], expected["efficacy"])


def test_a_judge_that_does_not_answer_stops_before_any_work(world, tmp_path):
    with pytest.raises(SystemExit, match="gives no verdict"):
        fit(world, tmp_path, "--scorecard.generated", "true",
            "--scorecard.judge.url", "http://127.0.0.1:9/v1", "--scorecard.judge.model", "any")  # fmt: skip
    assert not (tmp_path / "scorecard.json").exists()
