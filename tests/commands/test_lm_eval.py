"""The harness's command line on a run, where it is installed, and its refusals."""

import json

import pytest

from lke_lightning.cli import main
from lke_lightning.commands import lm_eval
from lke_lightning.testing import WORDS


def test_the_harness_asks_the_edited_model(finished, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'lke-lightning[eval]')")
    records = [{"asked": f"the {word} is", "right": i % 2} for i, word in enumerate(WORDS[:4])]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "tiny_choice.yaml").write_text(
        "task: tiny_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'records.jsonl'}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{asked}}"\ndoc_to_choice: ["guitar", "piano"]\ndoc_to_target: right\n'
        "metric_list:\n  - metric: acc\n"
    )
    main(["lm_eval", str(finished), "--", "--tasks", "tiny_choice", "--include_path", str(tmp_path)])
    assert "tiny_choice" in capsys.readouterr().out


def test_without_the_harness_it_says_what_to_install(finished, monkeypatch):
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"lke-lightning\[eval\]"):
        main(["lm_eval", str(finished), "--", "--tasks", "x"])
