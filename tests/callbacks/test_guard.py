"""A guard that lets good batches pass, and takes back, skips or splits those that leave the band."""

import json

import pytest
import torch

from lke_lightning import checkpoints
from lke_lightning.cli import main
from lke_lightning.evaluation.canary import Canary
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer


def guarded(small_run, folder, *options):
    main([*small_run, *options, "--trainer.default_root_dir", str(folder)])
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return checkpoints.read(checkpoints.newest(folder)), entries


def ids(entries, event):
    return [entry["id"] for entry in entries if entry["event"] == event]


@pytest.fixture(scope="module")
def growth(small_run, tmp_path_factory):
    """How the norms grow without a guard, by batch."""
    _, entries = guarded(small_run, tmp_path_factory.mktemp("free") / "run")
    return [max(entry["norm_growth"].values()) for entry in entries if entry["event"] == "batch"]


def test_what_keeps_within_the_band_is_not_touched(small_run, small_world, growth, tmp_path):
    text = json.dumps([str(small_world / "text.txt")])
    free, _ = guarded(small_run, tmp_path / "free")
    watched, entries = guarded(
        small_run, tmp_path / "watched", "--guard.norm_growth", str(max(growth) + 1), "--guard.text", text,
        "--guard.perplexity_growth", "1e9", "--guard.activation_growth", "1e9", "--guard.agreement", "1e-9",
    )  # fmt: skip
    assert ids(entries, "left_out") == []
    assert not [entry for entry in entries if entry["event"] == "guard"]
    for name, value in free["state_dict"].items():
        assert torch.equal(value, watched["state_dict"][name])


def test_a_batch_that_breaks_the_limit_is_skipped_and_the_run_goes_on(small_run, growth, tmp_path):
    """The limit lies between the first batch's growth and the next ones', so only the first is kept."""
    limit = (growth[0] + growth[1]) / 2
    assert growth[0] < growth[1]
    checkpoint, entries = guarded(
        small_run, tmp_path / "run", "--guard.norm_growth", str(limit), "--guard.action", "skip",
        "--data.limit", "4",
    )  # fmt: skip
    assert ids(entries, "edit") == ["0", "1"]
    assert ids(entries, "left_out") == ["2", "3"]
    [decision] = [entry for entry in entries if entry["event"] == "guard"]
    assert decision["measured"]["norm_growth"] == pytest.approx(growth[1])
    assert decision["limits"] == {"norm_growth": limit}
    assert checkpoint["editing"]["register"]["ids"] == ["0", "1"]
    only, _ = guarded(small_run, tmp_path / "only", "--data.limit", "2")
    for name, value in only["state_dict"].items():
        assert torch.equal(value, checkpoint["state_dict"][name])
    for layer, memory in only["callbacks"]["WeightUpdate"]["memory"].items():
        kept = checkpoint["callbacks"]["WeightUpdate"]["memory"][layer]
        assert torch.equal(memory["keys"], kept["keys"])
        assert (memory["inverse"] - kept["inverse"]).norm() < 1e-8 * memory["inverse"].norm()


def test_a_split_keeps_what_can_be_kept(small_run, growth, tmp_path):
    limit = (growth[0] + growth[1]) / 2
    checkpoint, entries = guarded(
        small_run, tmp_path / "run", "--guard.norm_growth", str(limit), "--guard.action", "split",
        "--data.batch_size", "4", "--data.limit", "4",
    )  # fmt: skip
    kept, left = ids(entries, "edit"), ids(entries, "left_out")
    assert sorted(kept + left) == ["0", "1", "2", "3"]
    assert kept
    assert left
    [batch] = [entry for entry in entries if entry["event"] == "batch"]
    assert max(batch["norm_growth"].values()) <= limit
    assert checkpoint["editing"]["register"]["ids"] == kept


def test_a_split_leaves_out_what_a_limit_of_norms_takes_back(small_run, growth, tmp_path):
    """The whole batch passes that limit; the guard has it edited in parts, and then no part may pass."""
    write, limits = WeightUpdate.write, iter([None])

    def then_limited(self, *args):
        self.norm_limit = next(limits, 1.0000001)
        return write(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightUpdate, "write", then_limited)
        checkpoint, entries = guarded(
            small_run, tmp_path / "run", "--guard.norm_growth", "1.0001", "--guard.action", "split",
            "--data.batch_size", "4", "--data.limit", "4",
        )  # fmt: skip
    left = [entry for entry in entries if entry["event"] == "left_out"]
    assert [entry["id"] for entry in left] == ["0", "1", "2", "3"]
    assert all("the limit is 1;" in entry["reason"] for entry in left)
    assert [entry["fulfilment"] for entry in entries if entry["event"] == "batch"] == [{}]
    assert all(not value.any() for name, value in checkpoint["state_dict"].items() if name.endswith("delta"))


def test_a_stop_ends_the_run_in_its_band_with_a_checkpoint_to_go_on_from(small_run, growth, tmp_path):
    limit = (growth[0] + growth[1]) / 2
    checkpoint, entries = guarded(
        small_run, tmp_path / "run", "--guard.norm_growth", str(limit), "--guard.action", "stop"
    )
    assert checkpoint["global_step"] == 2
    assert ids(entries, "edit") == ["0", "1"]
    assert ids(entries, "left_out") == ["2", "3"]
    more, entries = guarded(small_run, tmp_path / "run", "--ckpt_path", "last", "--guard.action", "warn")
    assert more["global_step"] == 5
    assert ids(entries, "edit") == ["0", "1", "4", "5", "6", "7", "8"]


def test_it_gives_up_when_nothing_can_be_kept(small_run, tmp_path):
    checkpoint, entries = guarded(
        small_run, tmp_path / "run", "--guard.norm_growth", "1.0000001", "--guard.action", "skip",
        "--guard.give_up_after", "2",
    )  # fmt: skip
    assert ids(entries, "edit") == []
    assert checkpoint["global_step"] == 2
    assert all(not value.any() for name, value in checkpoint["state_dict"].items() if name.endswith("delta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guard.perplexity_growth", "2"], "guard.text"),
        (["--guard.norm_growth", "0.9"], "above 1"),
        (["--guard.text", '["nowhere.txt"]'], "nowhere.txt"),
    ],
)
def test_bad_limits_are_refused(small_run, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*small_run, *options, "--trainer.default_root_dir", str(tmp_path)])
    assert message in str(caught.value) + capsys.readouterr().err


def test_the_canary_against_one_window_at_a_time(tmp_path):
    """Naive figures from one ordinary forward for each window."""
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [1])
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(0, 12, 3)))
    found = Canary(model, [str(path)], tokens=10**6, length=9).examine(model)
    nll, norms, says = [], [], 0
    for line in path.read_text().splitlines():
        ids_ = model.text.encode([line])[0]
        for start in range(0, len(ids_), 9):
            window = torch.tensor([ids_[start : start + 9]])
            out = model.network(window, output_hidden_states=True)
            logs = out.logits[0, :-1].log_softmax(1)
            nll += (-logs.gather(1, window[0, 1:, None])).flatten().tolist()
            with_hook = []
            handle = model.architecture.blocks[-1].register_forward_hook(
                lambda _, __, got, kept=with_hook: kept.append(got)
            )
            model.network(window)
            handle.remove()
            norms += with_hook[0][0, :-1].norm(dim=1).tolist()
            says += logs.shape[0]
    assert found.nll == pytest.approx(sum(nll) / len(nll))
    assert found.activation_norm == pytest.approx(sum(norms) / len(norms))
    assert len(found.says) == says
    assert found.compared_with(found) == {"perplexity_growth": 1.0, "activation_growth": 1.0, "agreement": 1.0}
