"""Published hyperparameters: every combination of the table composes and parses, and wrong names are told."""

import pytest
import yaml

from lke_lightning.cli import main
from lke_lightning.composition import compose
from lke_lightning.edits import EditError
from lke_lightning.published import Published, combinations
from lke_lightning.stage_one.gradients import OutputGradients
from lke_lightning.stage_two.fine_tuning import FineTuning

OURS = "tests/conf/cf-llama-9m.yaml"


@pytest.mark.parametrize(
    ("names", "table"),
    [(names, "published.yaml") for names in combinations()] + [(names, OURS) for names in combinations(OURS)],
    ids=str,
)
def test_every_combination_makes_two_stages(names, table):
    found = Published.compose(*names, table=table)
    made, _ = compose(found.config)
    assert found.config["model"]["layers"]
    by_gradients, tunes = isinstance(made.one, OutputGradients), isinstance(made.two, FineTuning)
    if tunes:
        assert not made.two.parametrisation.relative  # in the units of the weights, as published
    else:  # in the units of the activations
        assert (made.one.step if by_gradients else made.one.lr) is not None
    assert by_gradients or tunes or made.two.statistics.corpus != "demo"
    assert made.two.norm_limit is None  # a collapse is to be seen
    if table != OURS:
        assert "arXiv" in found.header[0]
        assert found.config["data"]["init_args"]["path"]
        assert "limit" not in found.config["data"]["init_args"]


def weights(method, model, data=None):
    made, _ = compose(Published.compose(method, model, data).config)
    terms = {type(term).__name__: term.weight for term in made.two.solver.preservation}
    extra = [rule.extra_steps for rule in made.one.stopping if hasattr(rule, "extra_steps")]
    return terms, extra, made.one.lr, made.one.max_steps, made.one.space.factor


def test_some_numbers_as_the_papers_print_them():
    both = {"BaseStatistics": 20000, "NormPenalty": 10}
    assert weights("encore", "gpt2-xl", "counterfact") == (both, [3], 0.5, 20, 0.75)
    assert weights("encore", "gpt2-xl") == weights("encore", "gpt2-xl", "counterfact")
    assert weights("encore", "llama3-8b", "zsre")[:2] == ({"BaseStatistics": 15000, "NormPenalty": 10}, [3])
    assert weights("alphaedit", "llama3-8b") == ({"NormPenalty": 10}, [], 0.1, 25, 0.75)
    assert weights("rome", "llama2-7b") == ({"NormPenalty": 1}, [], 0.5, 25, 4)
    assert weights("pmet", "gpt-j-6b") == ({"BaseStatistics": 6000}, [], 0.2, 30, 0.75)
    stable, _ = compose(Published.compose("stableedit", "llama3-8b").config)
    assert (stable.one.step, stable.one.warm_up, stable.two.solver.preservation[0].weight) == (1e-6, 2000, 10)
    nas, _ = compose(Published.compose("nas", "llama3-8b").config)
    assert (nas.one.lr, nas.one.transform.sample, nas.one.transform.gate) == (0.1, 1000, 2.0)
    assert Published.compose("emmet", "gpt2-xl").config["model"]["layers"] == [17]


def test_the_file_it_writes_is_what_fit_takes(tmp_path, capsys):
    file = tmp_path / "new" / "rome.yaml"
    main(["published", "rome", "llama2-7b", "--output", str(file)])
    assert "# Hyperparameters of arXiv 2308.07269 (EasyEdit)" in file.read_text()
    assert yaml.safe_load(file.read_text()) == Published.compose("rome", "llama2-7b").config
    main(["published", "rome", "llama2-7b"])
    assert capsys.readouterr().out == file.read_text()
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(file), "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["data"]["init_args"]["batch_size"] == 1
    assert found["stage_two"]["statistics"]["init_args"]["tokens"] == 1_100_800


def test_a_setting_of_a_part_that_the_method_lacks_is_told(tmp_path):
    table = tmp_path / "table.yaml"
    table.write_text("{models: {}, methods: {memit: {tiny: {NormPenalty.weight: 1}}}}")
    with pytest.raises(EditError, match=r"has 'NormPenalty\.weight' for memit on tiny, a method without such a part"):
        Published.compose("memit", "tiny", table=str(table))
