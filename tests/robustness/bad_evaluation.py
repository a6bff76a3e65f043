"""Bad inputs of what is measured: the sections `scorecard`, `drift`, `guard` and `downstream`, and `validate`."""

import json

from tests.robustness.bad_input import Bad


def fit_with(option, content):
    """Name a text file with this content, or one that is not there, under an option."""

    def place(folder, world):
        path = folder / "text.txt"
        if content is not None:
            path.write_bytes(content)
        return ["fit", option, json.dumps([str(path)])]

    return place


def folder_under(option):
    return lambda folder, world: ["fit", option, json.dumps([str(folder)])]


def task(kind, records=None, content=None, **options):
    """Name a task with a file of these records or this content; without, a file that is not there."""

    def place(folder, world):
        path = folder / "task.jsonl"
        if records is not None or content is not None:
            path.write_text(content or "".join(json.dumps(record) + "\n" for record in records))
        given = {"path": str(path), **options}
        return ["fit", "--downstream.tasks", json.dumps([{"class_path": kind, "init_args": given}])]

    return place


def harness(**options):
    given = [{"class_path": "LmEval", "init_args": {"task": "hellaswag", **options}}]
    return ["fit", "--downstream.tasks", json.dumps(given)]


def validate(*options):
    def place(folder, world):
        return ["validate", "--model.pretrained", str(world / "model"), "--data", "JsonLines", "--data.path",
                str(world / "facts.jsonl"), "--trainer.default_root_dir", str(folder / "run"), *options]  # fmt: skip

    return place


JUDGE = ["--scorecard.judge.model", "m", "--scorecard.judge.url"]


def judged(*options):
    return ["fit", "--scorecard.generated", "true", *JUDGE, *options]


REVIEWS = [{"sentence": "a fine film", "label": 0}] * 12

CASES = [
    Bad("scorecard-max-tokens", ["fit", "--scorecard.max_tokens", "-5"], r"scorecard\.max_tokens is -5: .*at least 1"),
    Bad("scorecard-max-tokens-nan", ["fit", "--scorecard.max_tokens", "nan"], r"scorecard\.max_tokens.*int"),
    Bad("scorecard-text-tokens", ["fit", "--scorecard.text_tokens", "-1"], r"scorecard\.text_tokens is -1"),
    Bad(
        "scorecard-generated-tokens", ["fit", "--scorecard.generated_tokens", "0"], r"generated_tokens is 0: .*at least"
    ),
    Bad("scorecard-text-missing", fit_with("--scorecard.text", None), r"no text file '.*' \(scorecard\.text\)"),
    Bad("scorecard-text-folder", folder_under("--scorecard.text"), r"no text file '.*' \(scorecard\.text\)"),
    Bad("scorecard-text-blank", fit_with("--scorecard.text", b" \n\n\t\n"), r"\(scorecard\.text\) holds no text"),
    Bad(
        "scorecard-text-latin",
        fit_with("--scorecard.text", b"Z\xfcrich\n"),
        r"\(scorecard\.text\) cannot be read: it is not UTF-8",
    ),
    Bad("judge-alone", ["fit", *JUDGE, "http://localhost:9/v1"], r"set scorecard\.generated"),
    Bad("judge-address", judged("localhost:8000/v1"), r"'localhost:8000/v1' must begin with http.*judge\.url"),
    Bad("judge-port", judged("http://host:eighty/v1"), r"'http://host:eighty/v1' must begin with http"),
    Bad("judge-model", judged("http://localhost:9/v1", "--scorecard.judge.model", ""), r"judge\.model"),
    Bad("judge-key", judged("http://localhost:9/v1", "--scorecard.judge.key_variable", "NO_KEY"), "'NO_KEY' holds no"),
    Bad("judge-timeout", judged("http://localhost:9/v1", "--scorecard.judge.timeout", "-1"), r"judge\.timeout is -1"),
    Bad("drift-every", ["fit", "--drift.every", "0"], r"drift\.every is 0: .*at least 1"),
    Bad("drift-text-tokens", ["fit", "--drift.text_tokens", "0"], r"drift\.text_tokens is 0"),
    Bad("drift-text-missing", fit_with("--drift.text", None), r"no text file '.*' \(drift\.text\)"),
    Bad("guard-text-blank", fit_with("--guard.text", b"\n"), r"\(guard\.text\) holds no text"),
    Bad("guard-text-tokens", ["fit", "--guard.text_tokens", "-2000"], r"guard\.text_tokens is -2000"),
    Bad("downstream-every", ["fit", "--downstream.every_n_edits", "-1"], r"every_n_edits is -1: .*at least 0"),
    Bad("downstream-max-tokens", ["fit", "--downstream.max_tokens", "0"], r"downstream\.max_tokens is 0"),
    Bad("task-missing", task("SST2"), r"no file '.*task\.jsonl' \(downstream\.tasks, SST2\)"),
    Bad("task-of-another-kind", task("MRPC", REVIEWS), "record 0 is not one of MRPC"),
    Bad("task-label", task("SST2", [{"sentence": "a", "label": -1}] * 12), "record 0 is not one of SST2.*label is -1"),
    Bad("task-too-short", task("SST2", REVIEWS[:10]), "no questions besides the 10"),
    Bad("task-limit", task("SST2", REVIEWS, limit=0), "limit 0: at least one"),
    Bad("mmlu-is-a-file", task("MMLU", REVIEWS), r"no files .*\(downstream\.tasks, MMLU\)"),
    Bad("me-ppl-without-text", task("MEPPL", [{"Text": "a"}, {"text": "b"}]), "record 1 has no field Text"),
    Bad("me-ppl-not-json", task("MEPPL", content="Text: a"), r"task\.jsonl, line 1"),
    Bad("harness-batch-size", harness(batch_size=0), r"batch_size of lm-eval:hellaswag.*is 0"),
    Bad("harness-folder", harness(include_path="/no/such/folder"), "no folder '/no/such/folder'"),
    Bad("validate-generated-tokens", validate("--scorecard.generated_tokens", "-3"), r"generated_tokens is -3"),
    Bad("validate-text", validate("--scorecard.text", "[nowhere.txt]"), r"no text file 'nowhere\.txt'"),
]
