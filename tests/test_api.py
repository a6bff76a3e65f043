"""Editing from Python: a model that is loaded, and one whose run lies in a folder."""

import json

import lightning
import pytest
import torch
import yaml

from lke_lightning import EditError, EditRequest, Probe, api, checkpoints, edit, resume, run_folder
from lke_lightning.callbacks.scorecard import Scorecard
from lke_lightning.cli import main
from lke_lightning.composition import compose
from lke_lightning.configuration import configs, read
from lke_lightning.data import RequestList, own_request
from lke_lightning.editor import Editor
from lke_lightning.ledger import Ledger
from lke_lightning.model.language_model import load
from lke_lightning.published import Published
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import EqualityConstrained, LeastSquares
from lke_lightning.stage_two.statistics import KeyStatistics
from lke_lightning.stage_two.transforms import SpectralCap, TopRelativeChange
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer
from lke_lightning.trainer import SETTINGS

BOB = {"id": "bob", "prompt": "Bob was born in the", "subject": "Bob", "target": "city", "original": "river"}
ANA = EditRequest(id="ana", prompt="{} plays the", subject="Ana", target="guitar", original="river")
CYD = {"id": "cyd", "prompt": "{} was born in the", "subject": "Cyd", "target": "guitar", "paraphrases": ["Cyd plays"]}
BOB_ANEW = {**BOB, "id": "bob anew", "target": "guitar"}


@pytest.fixture(scope="module")
def config(small_world):
    """The method of `small_run`, in one file."""
    method, tiny = read(configs() / "method/encore.yaml"), read("tests/conf/tiny.yaml")
    settings = {"corpus": str(small_world / "text.txt"), "tokens": 2000, "cache_dir": str(small_world / "cache")}
    statistics = {"class_path": "KeyStatistics", "init_args": settings}
    content = {
        "model": {"layers": [0, 1], "method": "mine"},
        "stage_one": method["stage_one"]
        | tiny["stage_one"]
        | {"max_steps": 10, "contexts": {"templates": ["Ana. {}"]}},
        "stage_two": method["stage_two"] | tiny["stage_two"] | {"statistics": statistics},
    }
    (small_world / "method.yaml").write_text(yaml.safe_dump(content))
    return small_world / "method.yaml"


@pytest.fixture
def begin(small_world, config):
    """Edits facts in a model that is loaded anew."""

    def start(facts, batch_size=1, **options):
        return edit(*load(str(small_world / "model")), facts, batch_size=batch_size, **({"config": config} | options))

    return start


@pytest.fixture(scope="module")
def command_line_run(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    main([*small_run, "--data.limit", "3", "--trainer.default_root_dir", str(folder)])
    return folder


def statistics_of(small_world):
    return KeyStatistics(str(small_world / "text.txt"), tokens=2000, cache_dir=str(small_world / "cache"))


def stages(small_world, solver=None, **options):
    solver = solver or LeastSquares([BaseStatistics(0.1), NormPenalty(0.01)], PastEdits())
    update = WeightUpdate(solver, statistics=statistics_of(small_world), **{"norm_limit": None, **options})
    return {
        "stage_one": TargetOptimization(space=NormBall(5.0), contexts=ContextTemplates(templates=[]), max_steps=10),
        "stage_two": update,
        "layers": [0, 1],
    }


def weights(network):
    return {name: weight.clone() for name, weight in network.state_dict().items()}


def deltas(model):
    return [weight.delta.clone() for weight in model.editor.language_model.edited.values()]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def near(ones, others, tolerance=1e-5):
    pairs = [(one.double(), other.double()) for one, other in zip(ones, others, strict=True)]
    return all((one - other).norm() <= tolerance * other.norm() for one, other in pairs)


def memory(model):
    """What a checkpoint would hold of the solver, by layer."""
    return [part for layer in model.stages.two.state_dict()["memory"].values() for part in layer.values()]


def refused(*args):
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, args)))
    return str(caught.value)


# Editing, and editing more


def test_editing_twice_is_one_run_of_two_batches(begin, small_world, config):
    twice = begin([BOB]).edit([ANA])
    assert same(deltas(twice), deltas(begin([BOB, ANA])))
    made, _ = compose(read(config))
    editor = Editor(str(small_world / "model"), layers=[0, 1])
    trainer = lightning.Trainer(
        **SETTINGS, callbacks=[made.one, made.two, Scorecard(report=False)], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(editor, datamodule=RequestList([own_request(BOB), ANA], batch_size=1))
    assert same(deltas(twice), [weight.delta for weight in editor.language_model.edited.values()])
    assert twice.edited == editor.edited == ["bob", "ana"]
    assert twice.after["efficacy"]["magnitude"] > twice.before["efficacy"]["magnitude"]
    assert repr(twice).endswith("2 of 2 edits in the weights)")


def test_a_model_is_loaded_and_edited_later(begin, small_world, config, tmp_path):
    model = api.begin(str(small_world / "model"), config=config)
    assert (model.edited, list(model.history())) == ([], [])
    model.edit([BOB]).save(tmp_path / "run")
    assert same(deltas(model), deltas(begin([BOB])))
    again = resume(tmp_path / "run")
    assert list(again.requests) == again.edited == ["bob"]
    again.undo("bob")
    assert [entry["event"] for entry in again.history()] == ["edit", "batch", "undo"]


def test_only_the_edited_matrices_change_and_the_model_stays_where_it_is(begin, small_world):
    original = weights(load(str(small_world / "model"))[0])
    model = begin([BOB])
    changed = [name for name, weight in model.model.state_dict().items() if not torch.equal(weight, original[name])]
    assert changed == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    assert model.model is model.editor.language_model.network
    assert {weight.device.type for weight in model.model.parameters()} == {"cpu"}


def test_the_change_follows_the_model_to_another_device(begin):
    model = begin([BOB])
    model.model.to("meta")
    model._follow()
    assert {delta.device.type for delta in deltas(model)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_is_edited_wherever_its_owner_moves_it(begin):
    model, stayed = begin([BOB]), begin([BOB]).edit([ANA]).edit([CYD])
    model.model.to("cuda")
    model.edit([ANA])
    assert {weight.device.type for weight in model.model.parameters()} == {"cuda"}
    model.undo("ana")
    model.redo("ana")
    model.model.to("cpu")
    model.edit([CYD])
    assert near(deltas(model), deltas(stayed), 1e-2)


def test_nothing_is_printed(small_world, config, capfd, caplog, recwarn):
    edit(*load(str(small_world / "model")), [CYD], config=config)  # key statistics are read once, with a progress bar
    network, tokenizer = load(str(small_world / "model"))
    capfd.readouterr()
    caplog.clear()
    edit(network, tokenizer, [BOB], config=config).edit([ANA]).undo("bob")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if "lightning" in record.name]  # its logger has its own stderr
    said = [str(warning.message) for warning in recwarn if "lightning" in warning.filename]
    ten_steps_are_few, the_weights_are_small = "of 1 targets are the model's first choice", "Give a fulfilment"
    assert all(ten_steps_are_few in message or the_weights_are_small in message for message in said)


def test_a_later_edit_takes_the_place_of_an_earlier_one(begin):
    model = begin([BOB]).edit([BOB_ANEW])
    assert model.edited == ["bob anew"]
    assert model.undo("bob anew") == {"bob anew": "bob"}
    assert model.edited == ["bob"]
    assert model.redo("bob anew") == {"bob anew": "bob"}


def test_facts_without_an_id_are_numbered_on(begin):
    ana, cyd = ({name: value for name, value in fact.items() if name != "id"} for fact in (BOB, CYD))
    model = begin([{**BOB_ANEW, "id": "1"}, ana], batch_size=2)
    assert model.editor.register.ids == ["2"]  # the later one of the batch states the same fact
    model.edit([cyd])
    assert model.editor.register.ids == ["2", "1"]
    model.undo(1)
    assert model.edited == ["2"]


# What fails leaves no trace


def dies(*_, **__):
    raise KeyboardInterrupt


BAD = {
    "a field that is wrong": ([CYD, {"prompt": "x", "target": ""}], "facts, record 1: field 'target' is empty"),
    "an id that was used": ([CYD, BOB], "record 1: the id 'bob' was used before"),
    "an id twice": ([CYD, CYD], "record 1: the id 'cyd' was used before"),
    "no fact": (["Bob"], "facts, record 0: the record is a text"),
    "no list": (CYD, "facts is an object, not a list"),
    "nothing": ([], "facts is empty"),
    "too long a prompt": ([CYD, {"id": "far", "prompt": "Bob " * 200, "target": "city"}], "edit far"),
}


@pytest.mark.parametrize(("facts", "says"), BAD.values(), ids=list(BAD))
def test_a_wrong_fact_changes_nothing(begin, facts, says):
    model = begin([BOB])
    before, register, known = deltas(model), model.editor.register.state_dict(), dict(model.before)
    register = json.dumps(register)
    with pytest.raises(EditError, match=says):
        model.edit(facts)
    assert same(deltas(model), before)
    assert json.dumps(model.editor.register.state_dict()) == register
    assert model.before == known


@pytest.mark.parametrize("place", ["_remember", "_checked", "compute"])
def test_an_interrupted_edit_is_taken_back(begin, monkeypatch, place, tmp_path):
    """Killed in the second layer: where the inverse is ahead of the rest of the memory, and before."""
    model = begin([BOB, ANA])
    before, remembered, live = deltas(model), [part.clone() for part in memory(model)], weights(model.model)
    real, calls = getattr(LeastSquares, place), []

    def dies_in_the_second_layer(*args):
        calls.append(args)
        return dies() if len(calls) == 2 else real(*args)

    monkeypatch.setattr(LeastSquares, place, dies_in_the_second_layer)
    with pytest.raises(KeyboardInterrupt):
        model.edit([BOB_ANEW, CYD], batch_size=1)
    monkeypatch.undo()
    assert same(deltas(model), before)
    assert near(memory(model), remembered, 1e-9)
    assert same(model.model.state_dict().values(), live.values())
    assert model.edited == ["bob", "ana"]
    assert model.batch_size == 1
    model.edit([BOB_ANEW, CYD])
    assert near(deltas(model), deltas(begin([BOB, ANA, BOB_ANEW, CYD])))
    model.save(tmp_path / "run")
    edits = [entry["id"] for entry in Ledger(tmp_path / "run").read() if entry["event"] == "edit"]
    assert edits == ["bob", "ana", "bob anew", "cyd"]


def test_an_interrupted_undo_is_taken_back(begin, monkeypatch):
    model = begin([BOB, ANA])
    before, remembered = deltas(model), [part.clone() for part in memory(model)]
    calls, real = [], WeightUpdate._agreed

    def dies_in_the_second_layer(*args):
        calls.append(args)
        return dies() if len(calls) == 2 else real(*args)

    monkeypatch.setattr(WeightUpdate, "_agreed", staticmethod(dies_in_the_second_layer))
    with pytest.raises(KeyboardInterrupt):
        model.undo("bob")
    assert same(deltas(model), before)
    assert near(memory(model), remembered, 1e-9)
    assert model.edited == ["bob", "ana"]


def test_a_first_edit_that_is_interrupted_leaves_model_and_stages_as_new(small_world, monkeypatch):
    network, tokenizer = load(str(small_world / "model"))
    original, parts = weights(network), stages(small_world)
    monkeypatch.setattr(LeastSquares, "_remember", dies)
    with pytest.raises(KeyboardInterrupt):
        edit(network, tokenizer, [BOB], **parts)
    monkeypatch.undo()
    assert same(network.state_dict().values(), original.values())
    assert edit(network, tokenizer, [BOB], **parts).edited == ["bob"]
    with pytest.raises(EditError, match="know the edits of another model"):
        edit(*load(str(small_world / "model")), [BOB], **parts)


def test_an_unsayable_target_is_found_before_the_first_batch(small_world):
    network, tokenizer = tiny_network("gpt2").float(), tiny_tokenizer(["Bob", "Ana", *WORDS])
    tokenizer.unk_token = "</s>"
    original = weights(network)
    with pytest.raises(EditError, match=r"edit 2: the target .* unknown to this vocabulary"):
        edit(network, tokenizer, [BOB, ANA, {"prompt": "x is", "target": "</s>"}], **stages(small_world), batch_size=1)
    assert same(network.state_dict().values(), original.values())


# Back, and back again


def test_undo_redo_revert(begin, small_world):
    model = begin([BOB, ANA])
    whole, bob = deltas(model), model.score([BOB])["efficacy"]["magnitude"]
    assert model.undo("bob") == {"bob": None}
    assert model.edited == ["ana"]
    assert model.score()["efficacy"] == model.score([ANA])["efficacy"]
    assert model.score([BOB])["efficacy"]["magnitude"] < bob
    assert model.redo("bob") == {"bob": None}
    assert near(deltas(model), whole)
    assert model.score([BOB])["efficacy"]["magnitude"] == pytest.approx(bob, rel=1e-3)
    model.revert()
    assert model.edited == []
    assert same(weights(model.model).values(), load(str(small_world / "model"))[0].state_dict().values())
    assert model.score()["score"] is None
    with pytest.raises(EditError, match="undone before"):
        model.undo("bob")
    model.redo("ana", "bob")
    assert near(deltas(model), whole)


METHODS = {
    "updates cut after they are solved for": {"transform": TopRelativeChange(0.4)},
    "no memory": {"solver": LeastSquares([BaseStatistics(0.1)])},
    "equality": {"solver": EqualityConstrained([BaseStatistics(0.1)])},
}


@pytest.mark.parametrize("options", METHODS.values(), ids=list(METHODS))
def test_methods_without_exact_undo_are_reverted_to_the_bit_and_go_on(begin, small_world, options):
    parts = stages(small_world, **options)
    model = begin([BOB, ANA], **parts)
    with pytest.raises(EditError, match="cannot be undone exactly"):
        model.undo("bob")
    model.revert()
    assert same(weights(model.model).values(), load(str(small_world / "model"))[0].state_dict().values())
    assert model.edited == []
    with pytest.raises(EditError, match="cannot be undone exactly"):
        model.redo("bob")
    model.edit([CYD])
    assert model.edited == ["cyd"]
    assert near(deltas(model), deltas(begin([CYD], **stages(small_world, **options))))


# Folders


def test_a_saved_model_goes_on_as_if_it_had_never_been_away(begin, tmp_path):
    stayed = begin([BOB]).edit([ANA])
    model = begin([BOB])
    model.save(tmp_path / "run")
    again = resume(tmp_path / "run")
    assert again.batch_size == 1
    again.edit([ANA])
    assert same(deltas(again), deltas(stayed))
    for one in (stayed, again):
        one.undo("bob")
    assert near(deltas(again), deltas(stayed))
    again.save(tmp_path / "run")
    again.save(tmp_path / "copy")
    for folder in ("run", "copy"):
        read_again = resume(tmp_path / folder)
        assert read_again.edited == ["ana"]
        assert same(deltas(read_again), deltas(again))
        events = [entry["event"] for entry in Ledger(tmp_path / folder).read()]
        assert events == ["edit", "batch", "edit", "batch", "undo"]
    read_again.redo("bob")
    assert near(deltas(read_again), deltas(begin([BOB]).edit([ANA])))


def test_saving_keeps_the_newest_checkpoints(begin, tmp_path):
    model = begin([BOB, ANA])
    for fact in (CYD, BOB_ANEW, {**ANA_ANEW, "id": "3"}):
        model.save(tmp_path, keep=2)
        model.edit([fact])
    model.save(tmp_path)  # deletes none
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "batch-00000003.ckpt", "batch-00000004.ckpt", "batch-00000005.ckpt", "last.ckpt",
    ]  # fmt: skip


ANA_ANEW = {"prompt": "{} plays the", "subject": "Ana", "target": "city"}


def test_the_command_line_works_on_what_python_saved(begin, small_run, tmp_path, capsys):
    run = str(tmp_path / "run")
    begin([BOB, ANA]).edit([CYD]).save(run)
    capsys.readouterr()
    main(["log", run, "--as_json", "true"])
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(entry["id"], entry["batch"]) for entry in entries] == [("bob", 0), ("ana", 1), ("cyd", 2)]
    assert entries[0]["success_just_after"]
    main(["show", run, "ana"])
    main(["undo", run, "--edit", "ana"])
    assert resume(run).edited == ["bob", "cyd"]
    main(["redo", run, "--edit", "ana"])
    main(["export", run, "--output", str(tmp_path / "out"), "--format", "merged"])
    merged, left = load(str(tmp_path / "out"))[0], resume(run)
    assert same(merged.state_dict().values(), left.model.state_dict().values())
    (tmp_path / "facts.jsonl").write_text(json.dumps(BOB) + "\n" + json.dumps(CYD))
    given = [*small_run, "--trainer.default_root_dir", str(tmp_path / "scores"), "--ckpt_path", run]
    assert "none of the 9 facts of JsonLines is in the weights" in refused("validate", *given[1:])
    main(["validate", *given[1:], "--data.path", str(tmp_path / "facts.jsonl")])
    card = json.loads((tmp_path / "scores" / "scorecard.json").read_text())
    assert card["final"]["efficacy"] == left.score([BOB, CYD])["efficacy"]
    assert "edited from Python: go on with lke_lightning.resume" in refused(*given)
    assert "edited from Python" in refused(*given[:-3], run, "--ckpt_path", "last")


def test_a_run_of_the_command_line_goes_on_in_python(command_line_run, small_run, tmp_path):
    model = resume(command_line_run)
    assert model.edited == ["0", "1", "2"]
    assert model.batch_size == 2
    model.edit([{name: value for name, value in CYD.items() if name != "id"}])
    assert model.edited == ["0", "1", "3"]  # "2" stated the same fact
    model.save(tmp_path / "run")
    assert [entry["batch"] for entry in Ledger(tmp_path / "run").read() if entry["event"] == "batch"] == [0, 1, 2]
    assert resume(tmp_path / "run").edited == ["0", "1", "3"]
    assert resume(command_line_run).edited == ["0", "1", "2"]
    given = [*small_run, "--data.limit", "3", "--trainer.default_root_dir"]
    assert "edited from Python" in refused(*given, tmp_path / "run", "--ckpt_path", "last")


def test_a_run_undone_in_python_is_continued_by_the_command_line(command_line_run, small_run, tmp_path):
    model = resume(command_line_run)
    model.undo("1")
    model.save(tmp_path / "run")
    random = [checkpoints.read(checkpoints.newest(run))["editing"]["random"]["torch"]
              for run in (command_line_run, tmp_path / "run")]  # fmt: skip
    assert torch.equal(*random)
    main([*small_run, "--data.limit", "5", "--trainer.default_root_dir", str(tmp_path / "run"), "--ckpt_path", "last"])
    assert resume(tmp_path / "run").edited == ["0", "2", "3", "4"]


def test_stages_given_as_objects_have_to_be_given_again(begin, small_world, tmp_path):
    capped = stages(small_world, readout=SpectralCap(base=1.2))
    model = begin([BOB], **capped)
    model.save(tmp_path / "run")
    with pytest.raises(EditError, match=r"resume\(folder, stage_one=\.\.\., stage_two=\.\.\.\)"):
        resume(tmp_path / "run")
    assert "stage_one=..., stage_two=..." in refused("undo", tmp_path / "run", "--edit", "bob")
    output = tmp_path / "x.safetensors"
    assert "from Python: use" in refused("export", tmp_path / "run", "--output", output, "--format", "delta")
    parts = stages(small_world, readout=SpectralCap(base=1.2))
    again = resume(tmp_path / "run", parts["stage_one"], parts["stage_two"])
    assert same(deltas(again.edit([ANA])), deltas(model.edit([ANA])))
    again.export(output, "delta")
    assert output.is_file()


def test_exports(begin, tmp_path):
    model = begin([BOB])
    model.export(tmp_path / "merged")
    assert same(load(str(tmp_path / "merged"))[0].state_dict().values(), model.model.state_dict().values())
    model.export(tmp_path / "x.safetensors", "delta")
    model.export(tmp_path / "adapter", "lora", tolerance=0.01)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    with pytest.raises(EditError, match="exists"):
        model.export(tmp_path / "x.safetensors", "delta")


def test_a_folder_of_something_else_is_refused(begin, command_line_run, tmp_path):
    model = begin([BOB])
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt", command_line_run):
        with pytest.raises(EditError, match="exists and is"):
            model.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_others_did_in_the_folder_is_not_overwritten(begin, tmp_path):
    run = tmp_path / "run"
    begin([BOB, ANA]).save(run)
    early = tmp_path / "early.ckpt"
    mine = resume(run)
    main(["undo", str(run), "--edit", "bob"])
    mine.edit([CYD])
    with pytest.raises(EditError, match="another process has changed the run"):
        mine.save(run)
    assert resume(run).edited == ["ana"]
    mine.save(tmp_path / "mine")
    mine.edit([{**ANA_ANEW, "id": "ana anew"}]).save(tmp_path / "mine")
    early = sorted((tmp_path / "mine" / "checkpoints").glob("batch-*"))[0]
    assert resume(early).edited == ["bob", "ana", "cyd"]
    assert "an older checkpoint was named" in refused("undo", early, "--edit", "bob")


@pytest.mark.parametrize("is_new", [True, False], ids=["new folder", "old folder"])
def test_a_death_between_ledger_and_checkpoint_is_mended(begin, tmp_path, monkeypatch, capsys, is_new):
    run, model = tmp_path / "run", begin([BOB])
    if not is_new:
        model.save(run)
        model.edit([ANA])
    monkeypatch.setattr(run_folder, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        model.save(run)
    monkeypatch.undo()
    main(["log", str(run), "--state", "not saved"])
    assert ("Bob" if is_new else "Ana plays") in capsys.readouterr().out
    if is_new:
        with pytest.raises(EditError, match="neither a checkpoint nor the folder of a run"):
            resume(run)
    else:
        assert resume(run).edited == ["bob"]
    model.edit([CYD]).save(run)  # the same object
    assert resume(run).edited == model.edited
    assert [entry["id"] for entry in Ledger(run).read() if entry["event"] == "edit"] == model.edited


def test_a_save_after_another_process_died_in_one(begin, tmp_path, monkeypatch):
    run = tmp_path / "run"
    begin([BOB]).save(run)
    dead = resume(run).edit([ANA])
    monkeypatch.setattr(run_folder, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        dead.save(run)
    monkeypatch.undo()
    resume(run).edit([CYD]).save(run)
    assert resume(run).edited == ["bob", "cyd"]
    assert [entry["id"] for entry in Ledger(run).read() if entry["event"] == "edit"] == ["bob", "cyd"]
    assert '"ana"' in (run / "ledger.discarded.jsonl").read_text()


# What can be given


def test_every_form_of_a_fact(begin):
    full = {
        "id": 7, "prompt": "{} was born in the", "subject": "Bob", "target": " city ", "original": "river",
        "paraphrases": ("Bob plays",), "relation": "birth", "weight": 2, "aliases": ["guitar"],
        "neighborhood": ["Ana plays", {"prompt": "Cyd plays", "answer": "river"}, Probe("Dan plays", "river")],
        "portability": [{"prompt": "Eve plays", "answer": "city", "aliases": ["guitar"]}],
        "two_hop": [Probe("Fay plays", "city")], "generation": ["Bob"], "references": ["Bob plays"],
    }  # fmt: skip
    facts = [
        {"prompt": "Ana plays the", "target": "guitar"},
        {"prompt": "Bob plays the", "subject": "Bob", "target": "guitar", "original": None},
        full,
        EditRequest(id="r", prompt="{} plays the", subject="Cyd", target="city"),
    ]
    model = begin(facts, batch_size=4)
    assert model.edited == ["0", "1", "7", "r"]
    assert model.after["neighborhood"]["success"] is not None
    assert model.score([full])["paraphrase"]["success"] is not None


def test_without_layers_it_says_how_to_give_them(small_world):
    parts = stages(small_world) | {"layers": None}
    with pytest.raises(EditError, match="no layers to edit"):
        edit(tiny_network("gpt2"), tiny_tokenizer(), [BOB], **parts)


def test_the_model_is_used_as_the_configuration_says(begin, config, tmp_path):
    assert begin([BOB]).editor.method == "mine"
    content = read(config)
    content["model"]["chat"] = True
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(EditError, match="chat template"):
        begin([BOB], config=tmp_path / "chat.yaml")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"stage_one": {"lr": -1}}, "lr"), ({"stage_two": {"solver": {"class_path": "Solvr"}}}, "Solvr")],
)
def test_a_configuration_that_is_wrong_is_named(begin, tmp_path, change, says):
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(EditError, match=says):
        begin([BOB], config=tmp_path / "wrong.yaml")


def test_stages_come_from_a_configuration():
    found = Published.compose("encore", "llama3-8b", "counterfact").config
    assert found["model"]["layers"] == [4, 5, 6, 7, 8]
    made, _ = compose(found)
    assert [type(rule).__name__ for rule in made.one.stopping] == ["MostProbable", "LossBelow"]
    assert [term.weight for term in made.two.solver.preservation] == [15000, 20]
    with pytest.raises(EditError, match="no configuration"):
        edit(None, None, [], config="nowhere.yaml")


def test_the_ledger_tells_how_much_of_an_edit_arrived(begin, tmp_path):
    begin([BOB, ANA], batch_size=2).save(tmp_path / "run")
    edits = [entry for entry in Ledger(tmp_path / "run").read() if entry["event"] == "edit"]
    assert [set(map(type, (e["reached"], e["first_choice_just_after"], e["written"]))) for e in edits] == [
        {bool, float}
    ] * 2
    assert all(0 < entry["written"] <= 1 for entry in edits)
    assert all(entry["first_choice_just_after"] == entry["accurate_just_after"] for entry in edits)


def test_a_first_batch_that_blows_up_a_norm_leaves_no_trace(begin, small_world, config):
    network, tokenizer = load(str(small_world / "model"))
    before = weights(network)
    options = stages(small_world, LeastSquares([NormPenalty(1e-6)], PastEdits()), norm_limit=1.0001)
    with pytest.raises(EditError, match=r"nothing was written: .* layer 0's matrix by .*--stage_two\.norm_limit null"):
        edit(network, tokenizer, [BOB, ANA], **options)
    assert same(weights(network).values(), before.values())
