"""The smallest checkpoint that is read as one."""

from typing import Any

import torch

from lke_lightning import checkpoints


def checkpoint(**parts: Any) -> dict[str, Any]:
    """Return a checkpoint with all that one must have, empty but for `parts`."""
    made = _blank(checkpoints.CONTENTS)
    made["editing"]["format"] = checkpoints.FORMAT
    made["editing"]["random"] = {"torch": torch.get_rng_state(), "python": [3, [], None]}
    return {**made, **parts}


def _blank(kind: Any) -> Any:
    if isinstance(kind, dict):
        return {name: _blank(part) for name, part in kind.items()}
    return torch.zeros(0) if kind is torch.Tensor else kind()
