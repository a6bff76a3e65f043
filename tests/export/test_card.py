"""Model cards: true, complete, silent about what is not known, and without the paths of this machine."""

import json

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open

from lke_lightning import checkpoints
from lke_lightning.api import resume
from lke_lightning.cli import main
from lke_lightning.export import load, write_lora, write_merged
from tests.export.edited import base, edited


@pytest.fixture(scope="module")
def merged(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "merged"
    main(["export", str(finished), "--output", str(folder)])
    return folder


def card(folder):
    return ModelCard.load(folder / "README.md")


def test_it_tells_of_a_run_what_its_scorecard_does(merged, finished):
    text, scores = card(merged).text, json.loads((finished / "scorecard.json").read_text())
    assert "8 in the weights, 1 replaced" in text
    assert "JsonLines, 9 edits read, content hash `" in text
    assert f"content hash `{load(finished).language_model.base_hash}`, loaded in float32" in text
    for moment, row in (("before", "before the first edit"), ("just_after", "each edit just"), ("final", "at the end")):
        [line] = [line for line in text.splitlines() if line.startswith(f"| {row}")]
        assert line.split(" | ")[1] == f"{scores[moment]['efficacy']['success']:.3f}"
    norms = scores["weight_norms"]["0"]
    [line] = [line for line in text.splitlines() if line.startswith("| model.layers.0.mlp.down_proj.weight")]
    assert float(line.split(" | ")[2]) == pytest.approx(norms["after"] / norms["before"], abs=2e-4)
    assert "not scored" not in text
    assert "LeastSquares" in text.partition("```yaml")[2]


def test_the_header_names_no_base_and_no_licence_that_are_not_known(merged):
    header = card(merged).data.to_dict()
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["knowledge-editing", "lke-lightning"],
    }
    assert "the base that was edited names none" in card(merged).text


def test_no_path_of_this_machine_is_in_it(merged, small_world):
    assert str(small_world) not in (merged / "README.md").read_text()
    assert "corpus: text.txt" in card(merged).text  # its name alone


def test_a_model_that_was_changed_since_was_not_scored(run, tmp_path):
    edited = resume(run)
    edited.undo("3")
    edited.export(tmp_path / "undone")
    text = card(tmp_path / "undone").text
    assert "7 in the weights, 1 replaced, 1 undone" in text
    assert "This model itself was not scored" in text


@pytest.mark.parametrize(
    ("readme", "known"),
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# Base", {"license": "mit"}),
        ("---\nlicense: other\nlicense_name: own\n---\n", {"license": "other", "license_name": "own"}),
        ("---\nlicense: [\n---\n", {}),
        ("# No header", {}),
    ],
)
def test_the_licence_is_that_of_the_bases_own_card(readme, known, tmp_path):
    pretrained = base(tmp_path / "model", "llama")
    (tmp_path / "model" / "README.md").write_text(readme)
    write_lora(edited(pretrained), tmp_path / "adapter")
    header = card(tmp_path / "adapter").data.to_dict()
    assert {key: value for key, value in header.items() if key.startswith("license")} == known
    assert header["library_name"] == "peft"


def test_what_nobody_knows_is_not_said(tmp_path):
    write_merged(edited(base(tmp_path / "model", "llama")), tmp_path / "merged")
    text = card(tmp_path / "merged").text
    assert "Not known: no scorecard was kept" in text
    assert "facts given in Python" in text
    assert "The stages came from Python" in text


def test_a_checkpoint_of_an_earlier_version_has_no_name_of_its_data(run, tmp_path):
    path = checkpoints.find(run)
    saved = checkpoints.read(path)
    del saved["editing"]["stream"]["name"]
    write_merged(load(run), tmp_path / "merged", saved)
    assert "of a name that was not kept, 9 edits read" in card(tmp_path / "merged").text


def test_a_delta_says_the_same_in_short(finished, tmp_path):
    main(["export", str(finished), "--output", str(tmp_path / "x.safetensors"), "--format", "delta"])
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        about = file.metadata()
    scores = json.loads((finished / "scorecard.json").read_text())
    assert json.loads(about["scores"])["final"]["efficacy"] == scores["final"]["efficacy"]["success"]
    assert json.loads(about["data"])["name"] == "JsonLines"
    assert (about["edits"], "license" in about) == ("8", False)
    assert "lke-lightning" in json.loads(about["versions"])
