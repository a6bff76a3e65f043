"""The files of configs/: methods, models and data compose, nothing of one reaches another, and each has its source."""

import inspect
import itertools
import json
import runpy
from pathlib import Path

import pytest
import yaml

import lke_lightning.data
from lke_lightning import published
from lke_lightning.cli import main
from lke_lightning.sweeps.compare import Comparison

CONFIGS = Path(__file__).parents[1] / "configs"
FOLDERS = ("method", "model", "data")


METHODS, MODELS, DATA = (sorted(path.stem for path in CONFIGS.glob(f"{folder}/*.yaml")) for folder in FOLDERS)


def parsed(capsys, *arguments):
    """Return what `fit` makes of some arguments."""
    with pytest.raises(SystemExit) as caught:
        main(["fit", *map(str, arguments), "--print_config"])
    said = capsys.readouterr()
    assert caught.value.code in (0, None), said.err
    return yaml.safe_load(said.out)


def combinations():
    """Yield every method with a model and data, such that every model and every data set has its turn."""
    for i in range(max(len(METHODS), len(MODELS), len(DATA))):
        yield METHODS[i % len(METHODS)], MODELS[i % len(MODELS)], DATA[i % len(DATA)]


@pytest.mark.parametrize(("method", "model", "data"), list(combinations()))
def test_a_method_a_model_and_data_compose(method, model, data, capsys):
    files = [CONFIGS / folder / f"{name}.yaml" for folder, name in zip(FOLDERS, (method, model, data), strict=True)]
    given = [yaml.safe_load(path.read_text()) for path in files]
    found = parsed(capsys, *itertools.chain(*(("-c", path) for path in files)))
    assert found["model"]["method"] == given[0]["model"]["method"]
    assert found["model"]["pretrained"] == given[1]["model"]["pretrained"]
    assert found["data"]["class_path"].endswith("." + given[2]["data"]["class_path"])
    assert found["data"]["init_args"]["limit"] is None
    part, wanted = found["stage_two"], given[0]["stage_two"]
    if "class_path" not in wanted:
        part, wanted = part["solver"], wanted["solver"]
    assert part["class_path"].endswith("." + wanted["class_path"])
    for argument, value in wanted["init_args"].items():  # nothing of the default method is left in it
        assert classes(part["init_args"][argument]) == classes(value)


def classes(part):
    """Return the classes of a list of parts; of anything else, whether it is there."""
    is_parts = isinstance(part, list) and all(isinstance(term, dict) for term in part)
    return [term["class_path"].rsplit(".", 1)[-1] for term in part] if is_parts else part is not None


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_other_files_parse(path, capsys):
    if path.parent.name not in (*FOLDERS, "compare", "study"):
        assert "lke_lightning.stage_two" in str(parsed(capsys, "-c", path))


@pytest.mark.parametrize("data", [name for name in DATA if name != "demo"])
def test_nothing_of_the_demo_data_reaches_other_data(data, capsys):
    path = CONFIGS / "data" / f"{data}.yaml"
    given = yaml.safe_load(path.read_text())["data"]
    found = parsed(capsys, "-c", path)["data"]["init_args"]
    signature = inspect.signature(getattr(lke_lightning.data, given["class_path"]))
    own = {name: parameter.default for name, parameter in signature.parameters.items()}
    sources, named = found.pop("sources", []), given["init_args"].pop("sources", [])
    assert classes(sources) == classes(named)
    assert found == {name: value for name, value in {**own, **given["init_args"]}.items() if name != "sources"}


def test_a_methods_batch_size_holds_for_any_data_and_the_commands_for_any_method(capsys):
    files = ("-c", CONFIGS / "method" / "rome.yaml", "-c", CONFIGS / "data" / "jsonl.yaml")
    assert parsed(capsys, *files)["data"]["init_args"]["batch_size"] == 1
    assert parsed(capsys, *files[2:], *files[:2])["data"]["init_args"]["batch_size"] == 1
    assert parsed(capsys, *files, "--data.batch_size", "7")["data"]["init_args"]["batch_size"] == 7


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("compare/*.yaml")), ids=lambda path: path.stem)
def test_plan_names_files_that_are_there_or_says_how_they_are_made(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    for job in Comparison.read(str(path)).jobs:
        for file in job.configurations():
            if file.parts[0] == "runs":
                assert f"published $method {file.parent.name} counterfact --output {file.parent}" in path.read_text()
                assert (file.stem, file.parent.name, "counterfact") in published.combinations()
            else:
                assert file.is_file()


@pytest.mark.parametrize("plan", ["demo", "smollm2-200"])
def test_every_method_has_its_row_and_its_batch_size(plan):
    listed = yaml.safe_load((CONFIGS / "compare" / f"{plan}.yaml").read_text())
    rows = {part.split("/")[-1]: row for row in listed["rows"] for part in row["arguments"] if "/method/" in part}
    assert len(rows) == len(listed["rows"])
    assert set(rows) == {f"{name}.yaml" for name in METHODS}
    for name, row in rows.items():
        given = yaml.safe_load((CONFIGS / "method" / name).read_text())
        assert row["name"] == given["model"]["method"]
        if "data" in given and any("batch_size" in argument for argument in listed["arguments"]):
            assert f"--data.batch_size={given['data']['init_args']['batch_size']}" in row["arguments"]


def test_two_names_of_one_method_are_one_method():
    one, other = (yaml.safe_load((CONFIGS / "method" / f"{n}.yaml").read_text()) for n in ("rlsedit", "norm-penalty"))
    assert {**one, "model": None} == {**other, "model": None}


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


def test_the_other_tables_are_current_and_stand_where_they_should():
    root = CONFIGS.parent
    script = runpy.run_path(str(root / "docs" / "tables.py"))
    homes = {
        "README": ["headlines"],
        "docs/speed": ["performance"],
        "docs/methods": ["methods", "costs"],
        "docs/comparisons": ["small", "kinds"],
    }
    for page, names in homes.items():
        text = (root / f"{page}.md").read_text()
        assert all(marker in text for name in names for marker in script["markers"](name))
        assert script["rewritten"](text) == text
