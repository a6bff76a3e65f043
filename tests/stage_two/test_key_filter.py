"""What entities' keys share: found against a plain decomposition, kept out of every solve, saved with the run."""

import pytest
import torch

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.reading import SlotReader
from lke_lightning.stage_two.key_filter import SharedDirections, own_part
from lke_lightning.stage_two.keys import ContextMean
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.strength import first_keys
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.step import EditStep
from tests.stage_two.solvers.problems import close, randn
from tests.stage_two.test_undo import request, targets
from tests.stage_two.test_update import CONTEXTS, Unit, make_model

WEIGHTS = ContextMean().key_weights(len(CONTEXTS), False)
NAMES = ["Ana", "Bob Smith", "the river", "Ana Smith", "guitar"]
REQUESTS = [EditRequest(id=name, prompt="{} plays", subject=name, target="piano") for name in NAMES]


@pytest.mark.parametrize("energy", [0.1, 0.4, 0.9])
def test_they_are_the_fewest_that_hold_the_share(energy):
    keys = randn(9, 24, seed=1) + 3 * randn(1, 24, seed=2)
    model = make_model(layers=(1,))
    with pytest.warns(UserWarning, match="what 9 entities share for what all do"):
        basis = SharedDirections(energy).find(model, {1: keys}, ["{}"], torch.ones(1))[1]
    values, vectors = torch.linalg.eigh(keys.T @ keys)
    leading = vectors.flip(1)[:, : basis.shape[1]]
    close(basis @ basis.T, leading @ leading.T)
    held = values.flip(0).cumsum(0) / values.sum()
    assert held[basis.shape[1] - 1] >= energy
    assert basis.shape[1] == 1 or held[basis.shape[1] - 2] < energy
    own = own_part(keys, basis)
    assert (own @ basis).norm() < 1e-12 * keys.norm()
    close(own, keys - keys @ leading @ leading.T)


@pytest.mark.filterwarnings("ignore:the key filter takes")
def test_entities_of_a_file_are_read_as_subjects_in_the_contexts_of_edits(tmp_path):
    model, file = make_model(), tmp_path / "entities.txt"
    file.write_text("\n".join(NAMES))
    model.weight(0).add(torch.full_like(model.weight(0).delta, 0.01))  # it is the unedited model that counts
    found = SharedDirections(0.6, str(file)).find(model, {}, CONTEXTS, WEIGHTS)
    alone = [EditRequest(id=name, prompt="{}", subject=name, target="piano") for name in NAMES]
    keys = first_keys(model, alone, CONTEXTS, WEIGHTS)
    for layer, basis in found.items():
        expected = SharedDirections(0.6)._basis(keys[layer])
        close(basis @ basis.T, expected @ expected.T, 1e-6)


def stage_of(key_filter, requests=REQUESTS):
    model = make_model(layers=(0, 2))
    solver = LeastSquares([BaseStatistics(fulfilment=0.75), NormPenalty(proportion=0.1)], PastEdits())
    stage = WeightUpdate(solver, statistics=Unit(), key_filter=key_filter)
    stage.prepare(model, requests, ["{}"])
    return model, stage, Register()


@pytest.mark.filterwarnings("ignore:the key filter takes")
def test_nothing_is_solved_for_what_is_shared():
    model, stage, register = stage_of(SharedDirections())
    systems = stage.write(model, EditStep(tuple(REQUESTS), targets(5, 1), ["{}"]), register)
    reader, bare = SlotReader(model, REQUESTS, ["{}"]), torch.ones(1)
    for layer, system in systems.items():
        assert (system.keys @ stage.shared[layer]).norm() < 1e-9 * system.keys.norm()
        [keys] = reader.keys(layer, [bare])
        close(system.anchors, keys)  # equalities hold for the model's own keys
        close(system.keys, own_part(keys, stage.shared[layer]))
        close(stage.memory[layer]["keys"], system.keys)
    assert stage.strengths[0]["fulfilment"] == pytest.approx(0.75)


@pytest.mark.filterwarnings("ignore:the key filter takes")
def test_undo_stays_exact():
    batches = [[request(3 * b + i) for i in range(3)] for b in range(3)]
    model, stage, register = stage_of(SharedDirections(), batches[0])
    for number, batch in enumerate(batches):
        stage.write(model, EditStep(tuple(batch), targets(3, number), ["{}"]), register)
    stage.undo(model, register, ["1", "5"])
    for layer in model.layers:
        memory, rows = stage.memory[layer], [0, 2, 3, 4, 6, 7, 8]
        keys, changes = memory["keys"][rows], memory["changes"][rows]
        expected = torch.linalg.solve(memory["gram"] + keys.T @ keys, keys.T @ changes).T
        close(model.weight(layer).delta, expected, 1e-8)


@pytest.mark.filterwarnings("ignore:the key filter takes")
def test_a_run_that_goes_on_has_the_directions_of_its_start(monkeypatch):
    model, stage, _ = stage_of(SharedDirections())
    saved = stage.state_dict()
    monkeypatch.setattr(SharedDirections, "find", lambda *_: pytest.fail("found again"))
    again = WeightUpdate(stage.solver, statistics=Unit(), key_filter=SharedDirections())
    again.load_state_dict(saved)
    again.prepare(model, REQUESTS[:1], ["{}"])
    assert all(torch.equal(again.shared[layer], stage.shared[layer]) for layer in model.layers)
    assert "shared" not in stage_of(None)[1].state_dict()
    del saved["shared"]["2"]
    again.load_state_dict(saved)
    with pytest.raises(EditError, match="the directions of the key filter in the checkpoint cannot be used"):
        again.prepare(model, REQUESTS[:1], ["{}"])


@pytest.mark.parametrize(("requests", "says"), [([], "there are no edits yet"), (REQUESTS[:1], "has 1 entities")])
def test_without_entities_there_is_nothing_to_share(requests, says):
    with pytest.raises(EditError, match=rf"{says}.*name a file of them \(stage_two.key_filter.entities\)"):
        stage_of(SharedDirections(), requests)
