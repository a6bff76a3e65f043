"""What a run prints while it edits."""

import os
import subprocess
import sys
from collections import Counter

from lke_lightning.cli import main


def test_lines_of_batches_stand_alone_and_nothing_foreign_is_said(small_run, tmp_path, capfd):
    main([*small_run, "--data.limit", "4", "--trainer.default_root_dir", str(tmp_path),
          "--trainer.enable_progress_bar", "true"])  # fmt: skip
    printed = capfd.readouterr()
    lines = [line for line in (printed.out + printed.err).split("\n") if line.strip()]
    assert [line[:9] for line in lines if "batch " in line] == ["batch 1/2", "batch 2/2"]
    assert [line for line, count in Counter(printed.err.split("\n")).items() if count > 1] == []
    foreign = (
        "Seed",
        "GPU",
        "TPU",
        "Tip",
        "max_epochs",
        "Epoch",
        "weights_only",
        "litlogger",
        "?, ?it/s",
        "\r",
        "\x1b",
    )
    assert not [line for line in lines if any(word in line for word in foreign)]
    assert printed.err.index("Loading ") < printed.err.index("Editing LlamaForCausalLM")
    assert not printed.out.startswith("\n")
    main([*small_run, "--trainer.default_root_dir", str(tmp_path), "--ckpt_path", "last"])
    said = capfd.readouterr().err
    assert said.count("Continuing from") == 1
    assert "Restor" not in said


def test_the_first_line_comes_before_what_takes_seconds_to_import():
    lone = "import sys; sys.modules['torch'] = sys.modules['lightning'] = None; from lke_lightning.cli import main; "
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    ended = subprocess.run([sys.executable, "-c", lone + "main(['fit'])"], env=plain, capture_output=True, text=True)
    assert ended.returncode != 0
    assert ended.stderr.startswith("Starting fit\n")
