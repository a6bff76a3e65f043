"""Every YAML file of configs/ still parses: alone on top of the defaults, or as a plan of `compare`."""

import json
import runpy
from pathlib import Path

import pytest

from lke_lightning.cli import main
from lke_lightning.sweeps.compare import Plan

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    "name",
    sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "compare"),
)
def test_config_parses(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "-c", str(CONFIGS / name), "--print_config"])
    assert caught.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "stage_one:" in printed
    assert "lke_lightning.stage_two" in printed


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("compare/*.yaml")), ids=lambda path: path.stem)
def test_plan_names_files_that_are_there(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    for run in Plan.read(str(path)).runs:
        run.check()


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("method/*.yaml")))
def test_a_method_says_where_it_comes_from(name):
    header = [line for line in (CONFIGS / "method" / name).read_text().splitlines() if line.startswith("#")]
    assert "arXiv" in " ".join(header)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("model/*.yaml")))
def test_a_preset_says_where_it_comes_from(name):
    header = (CONFIGS / "model" / name).read_text().splitlines()[0]
    assert any(source in header for source in ("arXiv", "proposed from its depth", "comes with the package"))


def test_the_table_of_families_is_current_and_whole():
    from tests.families.families import FAMILIES

    root = CONFIGS.parent
    script = runpy.run_path(str(root / "docs" / "tables.py"))
    page = (root / "docs" / "models.md").read_text()
    assert all(marker in page for marker in script["markers"]("families"))
    assert script["rewritten"](page) == page
    recorded = json.loads((root / "results" / "families.json").read_text())["families"]
    assert set(recorded) == set(FAMILIES)


def test_the_readmes_tables_are_current():
    root = CONFIGS.parent
    script = runpy.run_path(str(root / "docs" / "tables.py"))
    readme = (root / "README.md").read_text()
    for name in ("methods", "performance"):
        assert all(marker in readme for marker in script["markers"](name))
    assert script["rewritten"](readme) == readme
