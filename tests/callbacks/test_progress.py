"""What a run prints while it edits."""

from lke_lightning.cli import main


def test_lines_of_batches_stand_alone_and_the_bar_goes(small_run, tmp_path, capfd):
    main([*small_run, "--data.limit", "4", "--trainer.default_root_dir", str(tmp_path),
          "--trainer.enable_progress_bar", "true"])  # fmt: skip
    printed = capfd.readouterr()
    shown = [line.split("\r")[-1].rstrip() for line in printed.out.split("\n")]  # what a terminal still shows
    assert [line[:9] for line in shown if "batch " in line] == ["batch 1/2", "batch 2/2"]
    assert not [line for line in shown if "Epoch" in line]
    assert "weights_only" not in printed.err
