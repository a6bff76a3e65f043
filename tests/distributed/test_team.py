"""Shares, folders and what single processes see of a team."""

import pytest
import torch

from lke_lightning.distributed import RUN_FOLDER, Team, as_stored, named_folder
from lke_lightning.edits import EditError


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10, 101])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_shares_are_the_items_in_order_and_differ_by_one_at_most(count, size):
    items = list(range(count))
    shares = [Team(rank, size, False).share(items) for rank in range(size)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_in_step_every_process_does_all_of_the_work():
    assert Team(2, 4, True).share([1, 2, 3]) == [1, 2, 3]


def test_a_single_process_keeps_what_it_has():
    team, value = Team.of(), torch.arange(6.0).view(3, 2)
    assert (team.rank, team.size, team.in_step) == (0, 1, False)
    assert team.gather([1, 2]) == [1, 2]
    assert team.everyones("x") == ["x"]
    assert team.first("x") == "x"
    assert all(part is value for part in (team.first_tensor(value), team.alike(value), team.sum(value)))
    assert team.gather_rows(value, value.device) is value
    assert as_stored(value, torch.nn.Parameter(value)) is value


@pytest.mark.parametrize(
    ("variables", "is_first", "folder"),
    [
        ({}, True, None),
        ({RUN_FOLDER: "runs/a"}, True, None),
        ({RUN_FOLDER: "runs/a"}, False, "runs/a"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "edit"}, False, "runs/slurm-7"),
        (
            {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
            True,
            "runs/slurm-7-3",
        ),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash"}, True, None),
        ({"TORCHELASTIC_RUN_ID": "x1", "WORLD_SIZE": "2"}, False, "runs/x1"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}, True, None),
    ],
)
def test_all_processes_know_the_folder(variables, is_first, folder, monkeypatch):
    for name in (RUN_FOLDER, "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert named_folder(is_first) == folder


def test_torchrun_without_an_id_is_told_to_name_the_folder(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EditError, match="default_root_dir"):
        named_folder(True)
