"""Bad inputs of `report`: places without a run, damaged files of a run, places where no page can be written."""

import json

from tests.robustness.bad_input import Bad

CARD = {"method": "M", "edits": 2, "final": {"efficacy": {"success": 0.5}}}
EDIT = {"event": "edit", "number": 0, "id": "0", "prompt": "A is", "subject": "A", "target": "b", "weight": 1.0,
        "batch": 0, "steps": 1, "stopped_by": "MaxSteps"}  # fmt: skip


def _run(folder, name, content):
    run = folder / "run"
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / "scorecard.json").write_text(json.dumps(CARD))
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return ["report", str(run)]


def _damaged(name, file, content, says=""):
    return Bad(
        f"report-{name}", lambda folder, _: _run(folder, file, content), rf"{file} is damaged.*{says}.*intact copy"
    )


def _written_to(name, place, says):
    def arguments(folder, _):
        (folder / "taken.html").write_text("a file")
        (folder / "folder.html").mkdir()
        return [*_run(folder, "scorecard.json", json.dumps(CARD)), "--output", str(folder / place)]

    return Bad(f"report-{name}", arguments, says)


CASES = [
    Bad("report-nothing", ["report"], "runs"),
    Bad("report-nowhere", ["report", "no/such/run"], "no folder 'no/such/run'.*folders of runs"),
    Bad("report-name-too-long", ["report", "x" * 300], "cannot read .*name too long"),
    Bad(
        "report-a-file-as-run", lambda folder, world: ["report", str(world / "facts.jsonl")], "no folder .*facts.jsonl"
    ),
    Bad("report-no-run", lambda folder, _: ["report", str(folder)], "neither the folder of a run nor one that holds"),
    _damaged("scorecard-list", "scorecard.json", "[]", "not a JSON object"),
    _damaged("scorecard-cut", "scorecard.json", '{"edits": ', "Expecting value"),
    _damaged("scorecard-bytes", "scorecard.json", b"\xff\xfe\x00{", "utf-8"),
    _damaged("scorecard-deep", "scorecard.json", "[" * 100_000),
    _damaged("scorecard-words-for-numbers", "scorecard.json", '{"edits": "many"}', "many"),
    _damaged("scorecard-other-shape", "scorecard.json", '{"final": [1, 2]}'),
    _damaged("scorecard-text-as-score", "scorecard.json", '{"final": {"efficacy": {"success": "high"}}}', "high"),
    _damaged("scorecard-norm-of-zero", "scorecard.json", '{"weight_norms": {"0": {"before": 0, "after": 1}}}'),
    _damaged("ledger-garbage-line", "ledger.jsonl", json.dumps(EDIT) + "\nnot json\n"),
    _damaged("ledger-line-is-a-number", "ledger.jsonl", "3\n"),
    _damaged("ledger-field-is-gone", "ledger.jsonl", '{"event": "edit", "id": "0", "batch": 0}\n', "missing"),
    _damaged("ledger-bytes", "ledger.jsonl", b"\x80\x81\n"),
    _damaged("drift-other-shape", "drift.json", '{"snapshots": [{}]}', "missing"),
    _damaged("downstream-list", "downstream.json", "[1]", "not a JSON object"),
    _damaged("metrics-bytes", "lightning_logs/version_0/metrics.csv", b"step,just_after/efficacy\n\xff\xfe,1\n"),
    _written_to("output-in-a-file", "taken.html/page.html", "taken.html is not a folder.*name another"),
    _written_to("output-deep-in-a-file", "taken.html/a/b/page.html", "taken.html is not a folder.*name another"),
    _written_to("output-a-folder", "folder.html", "which is a folder.*report.html"),
    _written_to("output-the-scorecard", "run/scorecard.json", "name the page's file"),
    _written_to("output-without-ending", "out", "name the page's file, such as .*out/report.html"),
    _written_to("output-name-too-long", "x" * 300 + ".html", "name too long.*name another"),
    Bad(
        "report-output-empty", lambda folder, _: [*_run(folder, "scorecard.json", "{}"), "--output", ""], "page's file"
    ),
]
