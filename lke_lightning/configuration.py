"""The YAML files: where they are, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from lke_lightning.edits import EditError

NODES = 100_000
"""Values that a file may hold once its aliases are unfolded; parsing copies them all."""

OUTRANKED = {
    "lr": {"relative_lr"}, "weight": {"fulfilment", "proportion"}, "fulfilment": {"proportion"},
    "threshold": {"share", "relative_threshold"}, "bound": {"relative_bound"},
}  # fmt: skip
"""Settings that have no effect where the same part is given another one."""

_load_yaml = get_loader("yaml")  # which takes 1e-3 for a number, as the command line does


def configs() -> Path:
    """Return the folder of the YAML files: in the package where it is installed, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find(name: str | Path) -> Path:
    """Return a YAML file by its path, or by its name below `configs/`.

    Raises:
        EditError: it is neither.
    """
    path = Path(name) if Path(name).is_file() else configs() / name
    if not path.is_file():
        raise EditError(f"no configuration {str(name)!r}, neither as a file nor below {configs()}")
    return path


def read(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of sections.

    Raises:
        EditError: it is missing, is not UTF-8 or YAML, holds no sections, or unfolds to too much.
    """
    if not Path(path).is_file():
        raise EditError(f"{path} is {'a folder' if Path(path).is_dir() else 'missing'}: name a YAML file")
    try:
        content = load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise EditError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise EditError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        held = "nothing" if content in (None, "") else f"a {type(content).__name__}"
        raise EditError(f"{path} holds {held}: it needs sections such as `model:` and `stage_two:`")
    return content


def load(text: str) -> Any:
    """Parse YAML as the command line does, unless aliases make it unfold to more than `NODES` values.

    Raises:
        yaml.YAMLError: it is not YAML, or too much.
    """
    content = _load_yaml(text)
    if unfolded(content) > NODES:
        raise yaml.YAMLError(f"its aliases (*name) unfold to more than {NODES:,} values, or to themselves")
    return content


def unfolded(value: Any, known: dict[int, float] | None = None) -> float:
    """Count values as if nothing were shared; what holds itself counts as infinite."""
    known = {} if known is None else known
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(unfolded(part, known) for part in parts)
    return known[id(value)]
