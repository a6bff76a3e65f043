"""Bad inputs of the commands themselves: their names, their options, values that no option takes, and their folders."""

import json

from tests.robustness.bad_input import Bad

CHECKPOINTS = ("undo RUN --edit 1", "redo RUN --edit 1", "export RUN --output PLACE/out")
LEDGERS = ("log RUN", "show RUN 1")
RUNS = (*CHECKPOINTS, *LEDGERS, "report RUN")


def at(run, command, make=None):
    """Arguments of a command about the place `run`, which `make` makes first."""

    def arguments(folder, _world):
        place = folder / run
        if make:
            make(place)
        return [word.replace("RUN", str(place)).replace("PLACE", str(folder)) for word in command.split()]

    return arguments


def writing(name, content, *command):
    """Arguments of a command, with FILE in the place of a file of this content."""

    def arguments(folder, _world):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [word.replace("FILE", str(folder / name)).replace("PLACE", str(folder)) for word in command]

    return arguments


def ledger_only(place):
    place.mkdir()
    (place / "ledger.jsonl").write_text("")


def damaged(place):
    (place / "checkpoints").mkdir(parents=True)
    (place / "checkpoints" / "batch-00000001.ckpt").write_text("this is no checkpoint")


def a_file(place):
    place.write_text("x")


def full(place):
    place.mkdir()
    (place / "precious.txt").write_text("years of work")


def plan(content, *more):
    return writing("plan.yaml", content, "compare", "--plan", "FILE", "--output", "PLACE/out", *more)


def method(content):
    return writing("method.yaml", content, "probe", "--method", "FILE", "--output", "PLACE/out")


def tune(*options):
    return at("", " ".join(["tune", "--output", "PLACE/out", *options]))


def probe(*options):
    return at("", " ".join(["probe", "--output", "PLACE/out", *options]))


def pretrain(*options):
    return at("", " ".join(["pretrain", "--output", "PLACE/out", *options]))


CASES = [
    Bad("no-such-command", ["fot"], "no command 'fot'.*did you mean 'fit'"),
    Bad("no-command-comes-close", ["zzz"], "no command 'zzz'.*there are fit, plan"),
    Bad("option-before-the-command", ["--plan", "f"], "no command '--plan'"),
    Bad("fit-batch-size-zero", ["fit", "--data.batch_size", "0"], "data.batch_size is 0"),
    Bad("fit-unknown-option", ["fit", "--data.lmit", "3"], "lmit.*Did you mean: --limit"),
    Bad("validate-unknown-option", ["validate", "--scorecrd.text", "3"], "--scorecard.text"),
    Bad("validate-checkpoint-nowhere", ["validate", "--ckpt_path", "/nowhere"], "/nowhere"),
    *(Bad(f"{name}-without-anything", [name], f"({needs}.*required|required.*{needs})") for name, needs in [
        ("log", "run"), ("show", "run"), ("report", "runs"), ("undo", "run"), ("redo", "run"), ("export", "ckpt_path"),
        ("compare", "plan"), ("pretrain", "output"),
    ]),
    *(Bad(f"{name}-unknown-option", given.split(), f"unrecognized.*Did you mean: --{close}") for name, given, close in [
        ("log", "log RUN --finid x", "find"), ("undo", "undo RUN --edits 1", "edit"),
        ("redo", "redo RUN --edit 1 --pretraned x", "pretrained"), ("report", "report RUN --outptu x", "output"),
        ("export", "export RUN --output x --fromat delta", "format"),
        ("compare", "compare --plan f --ouput x", "output"),
        ("tune", "tune --swep {}", "sweep"), ("probe", "probe --fcts 3", "facts"),
        ("pretrain", "pretrain --output x --haeds 3", "heads"), ("knowledge", "knowledge --modle x", "model"),
    ]),
    *(Bad(f"{name}-word-for-a-number", given.split(), "<class '(int|float)'>.*value: many") for name, given in [
        ("log", "log RUN --last many"), ("log-batch", "log RUN --batch many"),
        ("export", "export RUN --output x --rank many"), ("tune", "tune --edits many"), ("probe", "probe --facts many"),
        ("probe-noise", "probe --noise many"), ("pretrain", "pretrain --output x --heads many"),
        ("knowledge", "knowledge --seed many"),
    ]),
    Bad("log-number-for-a-truth", ["log", "RUN", "--failed", "7"], "Expected a <class 'bool'>.*7"),
    Bad("tune-number-for-a-sweep", ["tune", "--sweep", "7"], "--sweep.*7"),
    Bad("tune-number-for-values", ["tune", "--sweep", '{"stage_one.lr": 7}'], "--sweep.*7"),
    Bad("log-option-without-a-value", ["log", "RUN", "--find"], "--find: expected one argument"),
    Bad("log-two-runs", ["log", "RUN", "OTHER"], "unrecognized arguments: OTHER"),
    Bad("show-without-an-id", ["show", "RUN"], "required: edit"),
    *(Bad(f"{command.split()[0]}-of-nowhere", at("gone", command), "gone") for command in RUNS),
    *(Bad(f"{command.split()[0]}-of-a-file", at("file", command, a_file), "file")
      for command in RUNS),
    *(Bad(f"{command.split()[0]}-of-an-empty-folder", at("empty", command, lambda place: place.mkdir()), "empty")
      for command in RUNS),
    *(Bad(f"{command.split()[0]}-without-a-checkpoint", at("run", command, ledger_only), "checkpoint")
      for command in CHECKPOINTS),
    *(Bad(f"{command.split()[0]}-of-a-damaged-checkpoint", at("run", command, damaged), r"batch-00000001\.ckpt")
      for command in CHECKPOINTS),
    Bad("undo-without-edit", at("run", "undo RUN", ledger_only), "required.*edit"),
    Bad("redo-edit-without-ids", at("run", "redo RUN --edit", ledger_only), "--edit: expected at least one argument"),
    Bad("log-state-nonsense", at("run", "log RUN --state nonsense", ledger_only), "nonsense.*undone"),
    Bad("log-event-nonsense", at("run", "log RUN --event nonsense", ledger_only), "nonsense.*edit"),
    Bad("log-last-negative", at("run", "log RUN --last -1", ledger_only), "last.*-1"),
    Bad("log-last-zero", at("run", "log RUN --last 0", ledger_only), "last.*0"),
    Bad("log-batch-negative", at("run", "log RUN --batch -1", ledger_only), "batch.*-1"),
    Bad("show-unknown-id", at("run", "show RUN 99", ledger_only), "no edit '99'"),
    Bad("export-without-output", ["export", "RUN"], "required: output"),
    Bad("export-run-twice", ["export", "RUN", "--ckpt_path", "RUN", "--output", "x"], "not allowed with"),
    Bad("export-format-nonsense", at("run", "export RUN --output PLACE/out --format zip", damaged), "zip.*delta"),
    Bad("export-rank-negative", at("run", "export RUN --output PLACE/x --format delta --rank -1", damaged), "rank.*-1"),
    Bad("export-rank-zero", at("run", "export RUN --output PLACE/out --format lora --rank 0", damaged), "rank.*0"),
    Bad("export-rank-of-merged", at("run", "export RUN --output PLACE/out --rank 2", damaged), "rank"),
    Bad("export-tolerance-of-delta", at("run", "export RUN --output PLACE/out --format delta --tolerance 1", damaged),
        "tolerance"),
    Bad("export-tolerance-negative", at("run", "export RUN --output PLACE/out --format lora --tolerance -1", damaged),
        "tolerance.*-1"),
    Bad("export-onto-a-full-folder", at("out", "export PLACE --output RUN", full), "out.*not empty"),
    Bad("export-onto-a-file", at("out", "export PLACE --output RUN --format delta", a_file),
        "out.*exists"),
    Bad("report-output-below-a-file", at("file", "report PLACE --output RUN/x", a_file),
        "file|neither"),
    Bad("compare-plan-nowhere", ["compare", "--plan", "nowhere.yaml"], r"cannot read the plan 'nowhere\.yaml'"),
    Bad("compare-plan-folder", ["compare", "--plan", "tests"], "cannot read the plan 'tests'"),
    Bad("compare-plan-empty", plan(""), "holds a NoneType"),
    Bad("compare-plan-list", plan("[1, 2]"), "holds a list"),
    Bad("compare-plan-not-yaml", plan("rows: ["), "is not YAML"),
    Bad("compare-plan-latin1", plan("rows: [{name: \u00e9}]".encode("latin-1")), "is not YAML"),
    Bad("compare-plan-without-rows", plan("arguments: []"), "has no rows"),
    Bad("compare-plan-unknown-key", plan("{rows: [{name: a}], row: 1}"), "unknown 'row'"),
    Bad("compare-row-of-words", plan("rows: [a]"), "row 1 of the plan is 'a'"),
    Bad("compare-row-with-a-path", plan("rows: [{name: ../a}]"), "no slash"),
    Bad("compare-rows-alike", plan("rows: [{name: a}, {name: a}]"), "named 'a'"),
    Bad("compare-arguments-as-text", plan("rows: [{name: a, arguments: -c x}]"), "must be a list"),
    Bad("compare-configuration-nowhere", plan("rows: [{name: a, arguments: [-c, nowhere.yaml]}]"), r"nowhere\.yaml"),
    Bad("compare-into-a-file",
        writing("p.yaml", "rows: [{name: a}]", "compare", "--plan", "FILE", "--output", "FILE"), "cannot write into"),
    Bad("compare-below-a-file",
        writing("plan.yaml", "rows: [{name: a}]", "compare", "--plan", "FILE", "--output", "FILE/x"),
        "cannot write into"),
    Bad("tune-no-edits", tune("--edits 0"), "--edits is 0"),
    Bad("tune-negative-edits", tune("--edits -3"), "--edits is -3"),
    Bad("tune-no-trials", tune("--trials 0"), "--trials is 0"),
    Bad("tune-arguments-before-the-dashes", tune("-c x"), "unrecognized arguments: -c"),
    Bad("tune-into-a-file", at("file", "tune --output RUN", a_file), "cannot write into"),
    Bad("probe-no-facts", probe("--facts 0"), "--facts is 0"),
    Bad("probe-no-trials", probe("--trials 0"), "--trials is 0"),
    Bad("probe-no-samples", probe("--samples 0"), "--samples is 0"),
    Bad("probe-negative-noise", probe("--noise -1"), "--noise is -1"),
    Bad("probe-noise-nan", probe("--noise .nan"), "--noise is nan"),
    Bad("probe-method-nowhere", probe("--method nowhere.yaml"), r"no configuration 'nowhere\.yaml'"),
    Bad("probe-method-a-list", method("[1]"), "the method .* holds a list"),
    Bad("probe-method-not-yaml", method("a: ["), "is not YAML"),
    Bad("probe-method-unknown-setting", method("stage_one: {lrr: 1}"), "the method .*lrr"),
    Bad("probe-data-unknown", probe("--data CounterFakt"), "Did you mean: CounterFact"),
    Bad("probe-data-unknown-option", probe("--data CounterFact --data.pth x"), "pth.*Did you mean: --path"),
    Bad("probe-data-without-a-path", probe("--data CounterFact"), "required: path"),
    Bad("probe-data-no-edits", probe("--data DemoWorld --data.limit 0"), "data.limit is 0"),
    Bad("probe-data-nowhere", probe("--data CounterFact --data.path nowhere.json"), r"nowhere\.json"),
    Bad("probe-into-a-file", at("file", "probe --output RUN", a_file), "cannot write into"),
    Bad("pretrain-over-a-full-folder", at("out", "pretrain --output RUN", full), "exists and is not an empty folder"),
    Bad("pretrain-over-a-file", at("out", "pretrain --output RUN", a_file), "out exists"),
    Bad("pretrain-below-a-file", at("out", "pretrain --output RUN/x", a_file), "out"),
    Bad("pretrain-heads-that-do-not-divide", pretrain("--heads 7"), "--hidden is 192 and --heads 7"),
    Bad("pretrain-no-heads", pretrain("--heads 0"), "--heads is 0"),
    Bad("pretrain-no-layers", pretrain("--layers 0"), "--layers is 0"),
    Bad("pretrain-negative-passes", pretrain("--passes -1"), "--passes is -1"),
    Bad("pretrain-no-window", pretrain("--window 0"), "--window is 0"),
    Bad("pretrain-no-batch", pretrain("--batch_size 0"), "--batch_size is 0"),
    Bad("pretrain-learning-rate-nan", pretrain("--learning_rate .nan"), "--learning_rate is nan"),
    Bad("pretrain-no-warmup", pretrain("--warmup_steps 0"), "--warmup_steps is 0"),
    Bad("pretrain-few-tokens", pretrain("--vocabulary 10"), "--vocabulary is 10"),
    Bad("pretrain-no-steps", pretrain("--max_steps 0"), "--max_steps is 0"),
    Bad("pretrain-negative-seed", pretrain("--seed -1"), "--seed is -1"),
    Bad("knowledge-of-nowhere", ["knowledge", "--model", "/nope"], "--model /nope is not the folder of a model"),
    Bad("knowledge-of-a-file", ["knowledge", "--model", "README.md"], r"README\.md is not the folder"),
    Bad("knowledge-of-a-damaged-model",
        writing("config.json", json.dumps({"model_type": "none"}), "knowledge", "--model", "PLACE"), "cannot load"),
]  # fmt: skip
