"""The whole through the command line, on a tiny model."""

import inspect
import json

import huggingface_hub.constants
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lke_lightning.api import resume
from lke_lightning.cli import _parser, main
from lke_lightning.configuration import configs
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.stage_two.stage import StageTwo
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.suggestions import subclasses
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

FULFILMENT = 0.96
NAMES = ["Ana", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model in a folder, facts to edit, and text for key statistics."""
    folder = tmp_path_factory.mktemp("world")
    texts = [f"{name} {word}" for name in NAMES for word in WORDS]
    network = tiny_network("llama").float()
    network.config.max_position_embeddings = 1024  # DeepEdit shows long examples
    network.save_pretrained(folder / "model")
    tiny_tokenizer(texts).save_pretrained(folder / "model")
    facts = [
        {
            "prompt": f"{name} was born in the",
            "subject": name,
            "target": target,
            "original": "river",
            "paraphrases": [f"The city of {name} is the"],
            "neighborhood": [f"{other} was born in the"],
        }
        for name, other, target in zip(NAMES, NAMES[1:] + NAMES[:1], ["city", "guitar"] * 4, strict=True)
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    (folder / "text.txt").write_text("\n".join(" ".join(texts[i:] + texts[:i]) for i in range(0, 40, 2)))
    (folder / "strengths.yaml").write_text(json.dumps({"stage_two": {"solver": asking_for(FULFILMENT)}}))
    return folder


def asking_for(fulfilment):
    """A solver without the weights of tests/conf/tiny.yaml."""
    terms = [("BaseStatistics", {"weight": None, "fulfilment": fulfilment}),
             ("NormPenalty", {"weight": None, "proportion": 0.1})]  # fmt: skip
    terms = [{"class_path": name, "init_args": arguments} for name, arguments in terms]
    return {"class_path": "LeastSquares", "init_args": {"preservation": terms, "past_edits": {"weight": 1.0}}}


def arguments(world, out, *more):
    return [
        "fit", "-c", "configs/method/encore.yaml", "-c", "tests/conf/tiny.yaml", "-c", str(world / "strengths.yaml"),
        "--model.pretrained", str(world / "model"), "--model.layers", "[0,1]",
        "--data", "JsonLines", "--data.path", str(world / "facts.jsonl"), "--data.batch_size", "3", "--data.limit", "8",
        "--stage_two.statistics", "KeyStatistics", "--stage_two.statistics.corpus", str(world / "text.txt"),
        "--stage_two.statistics.tokens", "2000", "--stage_two.statistics.cache_dir", str(world / "cache"),
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(out),
        "--scorecard.text", json.dumps([str(world / "text.txt")]), "--scorecard.text_tokens", "500",
        "--trainer.enable_progress_bar", "false", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    main(arguments(world, out))
    return out


def test_fit_writes_a_scorecard(run):
    card = json.loads((run / "scorecard.json").read_text())
    assert card["method"] == "ENCORE"
    assert card["protocol"] == "teacher-forced"
    assert (card["edits"], card["batch_size"], card["data"]) == (8, 3, "JsonLines")
    for moment in ("before", "just_after", "final"):
        for kind in ("efficacy", "paraphrase", "neighborhood"):
            assert set(card[moment][kind]) == {"success", "magnitude", "accuracy"}
    assert card["just_after"]["efficacy"]["magnitude"] > card["before"]["efficacy"]["magnitude"]
    assert [(part["batch"], part["age"], part["edits"]) for part in card["retention"]] == [
        (0, 2, 3),
        (1, 1, 3),
        (2, 0, 2),
    ]
    assert all(norm["after"] != norm["before"] for norm in card["weight_norms"].values())
    assert set(card["seconds"]) == {"stage_one", "stage_two", "evaluation", "guard", "checkpoint", "total"}
    assert {"torch", "lightning", "transformers"} <= set(card["versions"])
    assert 1 < card["perplexity"]["before"] != card["perplexity"]["final"] > 1
    assert 1 <= card["steps"]["median"] <= 30


def test_strengths_are_in_the_scorecard_and_the_room_that_is_left_in_the_ledger(run):
    card = json.loads((run / "scorecard.json").read_text())
    for found in card["strengths"].values():
        assert found == {"factor": pytest.approx(found["factor"], abs=0), "fulfilment": pytest.approx(FULFILMENT)}
        assert found["factor"] > 0
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    batches = [entry["fulfilment"] for entry in entries if entry["event"] == "batch"]
    assert len(batches) == 3
    assert all(set(found) == set(card["strengths"]) == {"0", "1"} for found in batches)
    assert all(0 < share < 1 for found in batches for share in found.values())
    assert batches[0]["0"] == pytest.approx(FULFILMENT, abs=0.03)  # the keys of later layers are changed by then
    [table] = run.rglob("metrics.csv")
    assert "fulfilment/layer_1" in table.read_text().splitlines()[0]


def test_a_step_is_a_batch_and_the_checkpoint_holds_the_change_only(run, world):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert set(checkpoint["state_dict"]) == {"clock"} | {f"language_model.edited.{i}.delta" for i in (0, 1)}
    assert checkpoint["editing"]["register"]["ids"] == [str(i) for i in range(8)]
    assert checkpoint["callbacks"]["TargetOptimization"]["contexts"][0] == "{}"


def test_running_again_gives_the_same_bits(run, world, tmp_path):
    main(arguments(world, tmp_path))
    first, second = (torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (run, tmp_path))
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name])


IN_ROUNDS = (
    "--model.layers", "[0,1,2]", "--stage_two.placement", "BoundaryLayers",
    "--stage_two.repeat.rounds", "2", "--stage_two.repeat.tolerance", "0",
)  # fmt: skip


@pytest.mark.parametrize(("more", "layers", "rounds"), [((), [0, 1], 1), (IN_ROUNDS, [0, 2], 2)])
def test_a_resumed_run_ends_like_the_uninterrupted_one(more, layers, rounds, world, tmp_path):
    every = ["--checkpoint.every_n_train_steps", "1", "--checkpoint.keep", "-1"]
    main(arguments(world, tmp_path / "whole", *every, *more))
    early = tmp_path / "whole" / "checkpoints" / "batch-00000002.ckpt"
    main(arguments(world, tmp_path / "resumed", "--ckpt_path", str(early), *more))
    whole, resumed = (
        torch.load(tmp_path / out / "checkpoints" / "last.ckpt", weights_only=True) for out in ("whole", "resumed")
    )
    assert torch.load(early, weights_only=True)["editing"]["register"]["ids"] == [str(i) for i in range(6)]
    assert resumed["editing"]["register"] == whole["editing"]["register"]
    assert resumed["editing"]["layers"] == layers
    ledger = [json.loads(line) for line in (tmp_path / "resumed" / "ledger.jsonl").read_text().splitlines()]
    assert [entry["rounds"] for entry in ledger if entry["event"] == "batch"] == [rounds] * 3
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name])
    cards = [json.loads((tmp_path / out / "scorecard.json").read_text()) for out in ("whole", "resumed")]
    for part in ("perplexity", "steps", "strengths"):
        assert cards[0][part] == cards[1][part]
    for layer, memory in whole["callbacks"]["WeightUpdate"]["memory"].items():
        for part, value in memory.items():
            assert torch.equal(value, resumed["callbacks"]["WeightUpdate"]["memory"][layer][part])
    edited = resume(tmp_path / "resumed")  # which knows neither the command line nor more than the edited layers
    edited.undo(*edited.edited)
    assert not any(edited.editor.language_model.weight(layer).delta.any() for layer in layers)


def test_a_run_does_not_go_on_by_another_method(world, tmp_path):
    main(arguments(world, tmp_path, "--data.limit", "2", "--scorecard.text", "null"))
    changed = ("--stage_two.solver", json.dumps(asking_for(0.9)), "--ckpt_path", "last")
    with pytest.raises(SystemExit, match=r"another method:\n.*\.0\.init_args\.fulfilment: 0.96 .*, 0.9 now"):
        main(arguments(world, tmp_path, *changed))


def test_edited_model_is_a_plain_folder(run, tmp_path):
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    main(["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "edited")])
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    AutoTokenizer.from_pretrained(tmp_path / "edited")
    editor = Editor.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(network(ids).logits, editor.language_model.network(ids).logits)
    with pytest.raises(SystemExit, match="not empty"):
        main(["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "edited")])


def test_validate_scores_a_checkpoint(run, world, tmp_path):
    options = arguments(world, tmp_path, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    main(["validate", *options[1:]])
    fitted, validated = (json.loads((out / "scorecard.json").read_text()) for out in (run, tmp_path))
    assert validated["final"] == fitted["final"]


def test_a_checkpoint_of_another_model_is_refused(run, world, tmp_path):
    other = tiny_network("llama", seed=1).float()
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(EditError, match="another base model"):
        Editor.load_from_checkpoint(
            run / "checkpoints" / "last.ckpt", pretrained=str(tmp_path / "other"), weights_only=True
        )


METHODS = sorted(path.stem for path in (configs() / "method").glob("*.yaml"))


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_configurations(name, world, tmp_path):
    given = arguments(world, tmp_path, "--data.limit", "2", "--model.layers", "[1]", "--scorecard.text", "null")
    method = yaml.safe_load((configs() / "method" / f"{name}.yaml").read_text())
    one, two = method["stage_one"], method["stage_two"]
    given += ["--stage_one.max_steps", "12"] if "max_steps" in one else []
    given[given.index("configs/method/encore.yaml")] = f"configs/method/{name}.yaml"
    kind = next((part for part in subclasses(StageTwo) if part.__name__ == two.get("class_path")), WeightUpdate)
    options = inspect.signature(kind).parameters
    if "statistics" not in options:
        first = given.index("--stage_two.statistics")
        del given[first : first + 8]
        given += ["--stage_two.corpus", str(world / "text.txt")] if "corpus" in options else []
    if "TargetThenSentence" in str(two):  # else the model writes them
        (tmp_path / "true.txt").write_text("The river is in the city. The guitar is of the museum.")
        given += ["--stage_two.objective.text", str(tmp_path / "true.txt")]
    del given[3:7]  # those strengths are ENCORE's
    main(given)
    card = json.loads((tmp_path / "scorecard.json").read_text())
    assert card["edits"] == 2
    assert "perplexity" not in card
    [norms] = card["weight_norms"].values()
    assert (norms["after"] != norms["before"]) == ("norm_limit" in options)  # the others change no weight


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["fti"], "did you mean 'fit'"),
        (["fit", "--data.lmit", "3"], "--data.limit|limit"),
        (["fit", "--stage_one.learning_rat", "3"], "--stage_one"),
        (["fit", "--data", "CounterFakt"], "CounterFact"),
        (["undo", "RUN", "--edits", "1"], "Did you mean: --edit?"),
        (["log", "RUN", "--finid", "x"], "Did you mean: --find?"),
        (["probe", "--data", "CounterFakt"], "Did you mean: CounterFact?"),
    ],
)
def test_unknown_names_are_named_with_the_close_ones(command, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command)
    said = str(caught.value) + capsys.readouterr().err
    assert any(part in said for part in message.split("|")), said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.path", "nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["--model.pretrained", "nowhere/model"], "cannot load"),
        (["--model.layers", "[9]"], "do not exist"),
        (["--model.matrix", "mlp.up_proj"], "Matrices in a block"),
        (["--model.dtype", "float31"], "float31"),
        (["--stage_two.statistics.corpus", "nowhere.txt"], "no text file"),
        (["--scorecard.text", "[nowhere.txt]"], "no text file 'nowhere.txt'"),
        (["--stage_two.statistics.tokens", "10"], "fewer than the 64 entries"),
    ],
)
def test_wrong_input_stops_before_any_work(options, message, world, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no retries for a model that is nowhere
    with pytest.raises(SystemExit, match=message):
        main(arguments(world, tmp_path / "out", *options))
    assert not (tmp_path / "out" / "scorecard.json").exists()
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("log RUN --failed true --last 3", {"run": "RUN", "failed": True, "last": 3}),
        ("show RUN 4711", {"run": "RUN", "edit": "4711"}),
        ("undo RUN --edit 17 1e3 null", {"run": "RUN", "edit": ["17", "1e3", "null"]}),
        ("redo RUN --edit 17 --pretrained here", {"run": "RUN", "edit": ["17"], "pretrained": "here"}),
        ("report A 2 --output X", {"runs": ["A", "2"], "output": "X"}),
        ("export RUN --output X", {"ckpt_path": "RUN", "output": "X"}),
        ("export --ckpt_path RUN --output X --format delta", {"ckpt_path": "RUN", "output": "X", "format": "delta"}),
        ("compare --plan f", {"plan": "f"}),
        ("tune --edits 5 -- -c x --data.limit 3 --", {"edits": 5, "arguments": ["-c", "x", "--data.limit", "3", "--"]}),
        ('tune --sweep {"stage_one.lr":[1,2]}', {"sweep": {"stage_one.lr": [1, 2]}, "arguments": []}),
    ],
)
def test_words_and_options_reach_the_function(given, meant):
    found = _parser(given.split()[0]).parse_args(given.split()[1:]).as_dict()
    assert {name: found[name] for name in meant} == meant


def test_help_lists_the_commands_without_importing_torch(capsys):
    import subprocess
    import sys

    main([])
    assert "fit" in capsys.readouterr().out
    script = "import sys; from lke_lightning.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
