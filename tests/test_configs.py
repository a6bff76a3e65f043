"""Every YAML file of configs/ still parses, alone on top of the defaults."""

import runpy
from pathlib import Path

import pytest

from lke_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml")))
def test_config_parses(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "-c", str(CONFIGS / name), "--print_config"])
    assert caught.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "stage_one:" in printed
    assert "lke_lightning.stage_two" in printed


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("method/*.yaml")))
def test_a_method_says_where_it_comes_from(name):
    header = [line for line in (CONFIGS / "method" / name).read_text().splitlines() if line.startswith("#")]
    assert "arXiv" in " ".join(header)


def test_the_readmes_method_table_is_current():
    root = CONFIGS.parent
    script = runpy.run_path(str(root / "docs" / "method_table.py"))
    readme = (root / "README.md").read_text()
    assert script["BEGIN"] in readme
    assert script["rewritten"](readme) == readme
