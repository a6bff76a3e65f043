"""Runs `fit` on several gloo ranks, forked from one process in which everything is imported. Run as a script by tests.

Each job is a dict: `arguments` of the command line, `ranks`, and optionally `kill`: a rank that dies by SIGKILL before
its third update, `stop`: a rank that receives SIGTERM there, `time_is_up`: likewise SIGUSR1; and `slurm`: a folder with
a command `scontrol`, for ranks that take themselves for tasks of SLURM's job 7.
"""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch

import lke_lightning.fitting  # noqa: F401 - imported before the forks
from lke_lightning.cli import main
from lke_lightning.model.weights import EditedWeight


def signal_at(update, number):
    """Send this process a signal before one of its updates."""
    add, seen = EditedWeight.add, []

    def counted(self, change):
        seen.append(None)
        if len(seen) == update:
            os.kill(os.getpid(), number)
        add(self, change)

    EditedWeight.add = counted


def take_part(job, number, port, log):
    """Be one rank of a run; return its exit status."""
    if job["ranks"] > 1:  # what torchrun or SLURM sets
        rank, ranks = str(number), str(job["ranks"])
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if "slurm" in job:
            os.environ |= {
                "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": ranks, "SLURM_NTASKS_PER_NODE": ranks,
                "SLURM_NODEID": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "edit",
                "PATH": f"{job['slurm']}:{os.environ['PATH']}",
            }  # fmt: skip
        else:
            os.environ |= {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": "0",
                "TORCHELASTIC_RUN_ID": "tests",
            }  # fmt: skip
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only.rank = number  # was found out when it was imported
        from lightning_utilities.core.rank_zero import rank_zero_only as other

        other.rank = number
    for name, what in (("kill", signal.SIGKILL), ("stop", signal.SIGTERM), ("time_is_up", signal.SIGUSR1)):
        if job.get(name) == number:
            signal_at(3, what)
    with log.open("a") as file:
        for stream in (1, 2):  # also what loggers write, which know their streams from before
            os.dup2(file.fileno(), stream)
    try:
        main(job["arguments"])
    except SystemExit as error:
        print(error)
        return error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
    return 0


def run(job, logs):
    """Run a job on its ranks; return how each ended: its status, or minus the signal that killed it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(job["ranks"]):
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = take_part(job, number, port, Path(f"{logs}.{number}.log"))
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return [os.waitstatus_to_exitcode(status) for status in statuses]


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork of a process with threads would hang
    given = json.loads(sys.argv[1])
    ends = [run(job, f"{given['logs']}-{i}") for i, job in enumerate(given["jobs"])]
    print(json.dumps(ends))
