"""Any task of EleutherAI's evaluation harness (`lm-eval`), on the model in memory."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lke_lightning.edits import EditError, check_number
from lke_lightning.evaluation.downstream import Result, Task
from lke_lightning.model.language_model import LanguageModel


class LmEval(Task):
    """A task of `lm-eval`, which is installed with `pip install lke-lightning[eval]`.

    The harness runs the edited network itself: nothing is exported, and it is given a copy of the tokenizer, because it
    sets a padding token. Prompts, scoring and metrics are the harness's own.

    Args:
        task: name of the task, such as `hellaswag` or `gsm8k`.
        shots: solved examples before each question; `None`: the task's own number.
        limit: use only the first so many questions; `None`: all.
        batch_size: questions that are run at once.
        include_path: a folder with tasks of your own.
    """

    def __init__(
        self,
        task: str,
        shots: int | None = None,
        limit: int | None = None,
        batch_size: int = 16,
        include_path: str | None = None,
    ) -> None:
        self.task, self.shots, self.limit, self.batch_size = task, shots, limit, batch_size
        self.include_path = include_path

    @property
    def name(self) -> str:
        """The task's name with the prefix of the harness."""
        return f"lm-eval:{self.task}"

    def about(self) -> dict[str, Any]:
        """Describe the task and its settings."""
        return {"source": f"lm-eval {self.task}", "shots": self.shots, "limit": self.limit}

    def check(self) -> None:
        """Check the settings, and that the harness is installed.

        Raises:
            EditError: it is not installed, a number is too small, or there is no such folder with tasks.
        """
        for option, value, least in (
            ("shots", self.shots, 0),
            ("limit", self.limit, 1),
            ("batch_size", self.batch_size, 1),
        ):
            if value is not None:
                check_number(f"{option} of {self.name} (downstream.tasks)", value, at_least=least)
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise EditError(f"no folder {self.include_path!r} with tasks (include_path of {self.name})")
        if find_spec("lm_eval") is None:
            raise EditError(f"{self.name} needs lm-eval: pip install 'lke-lightning[eval]'")

    def measure(self, model: LanguageModel, max_tokens: int = 16384) -> Result:
        """Run the task.

        Returns:
            Every number that the harness reports for it, under the harness's names; of a group of tasks, the group's.

        Raises:
            EditError: the harness is not installed, or does not know the task.
        """
        self.check()
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=self.include_path)
        if self.task not in manager.all_tasks:
            raise EditError(f"lm-eval has no task {self.task!r} (downstream.tasks): name its folder with include_path")
        with _same_random_numbers():
            wrapped = HFLM(
                pretrained=model.network,
                tokenizer=copy.deepcopy(model.text.tokenizer),
                device=str(model.device),
                batch_size=self.batch_size,
            )
            found = simple_evaluate(
                model=wrapped,
                tasks=[self.task],
                num_fewshot=self.shots,
                limit=self.limit,
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=0,
            )
        numbers = (found.get("groups") or {}).get(self.task) or found["results"][self.task]
        return {name: value for name, value in numbers.items() if isinstance(value, int | float)}


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore the random generators that the harness seeds: measuring must not affect a run."""
    import numpy

    python, array = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
