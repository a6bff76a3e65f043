"""Make parts again from what a checkpoint says of them, importing nothing but parts of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, get_type_hints

from torch.optim import Optimizer

from lke_lightning.edits import EditError
from lke_lightning.shapes import fits

OPTIMIZERS = "torch.optim."
"""Where optimisers are, which are made when there are parameters: of these modules nothing else may be named."""
OURS = ("lke_lightning.stage_one.", "lke_lightning.stage_two.", "lke_lightning.model.units.")
"""Where the parts of the stages are: modules that may be imported whatever a file says."""


def path_of(kind: type) -> str:
    """Return the path that a class is imported by."""
    return f"{kind.__module__}.{kind.__qualname__}"


def described(part: Any) -> dict[str, Any]:
    """Return a part with `settings`, and such parts in them, as plain values, from which `remade` makes it again."""
    arguments = {name: described(at) if hasattr(at, "settings") else at for name, at in part.settings.items()}
    return {"class_path": path_of(type(part)), "init_args": arguments}


def remade(description: Mapping[str, Any], kind: type) -> Any:
    """Make a part that a checkpoint describes, of a kind; nothing but parts of this package are imported.

    Raises:
        EditError: it is of another kind, or does not fit this version.
    """
    part = rebuilt(dict(description), ())
    if not isinstance(part, kind):
        raise EditError(f"the checkpoint has a {type(part).__name__} in place of a {kind.__name__}: use another one")
    return part


def rebuilt(tree: Any, trust: Sequence[str]) -> Any:
    """Replace every `class_path` with its `init_args`, in a tree of plain values from a file, by an object."""
    if isinstance(tree, list):
        return [rebuilt(part, trust) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "class_path" not in tree:
        return {name: rebuilt(part, trust) for name, part in tree.items()}
    return construct(_class(str(tree["class_path"]), trust), rebuilt(tree.get("init_args") or {}, trust))


def _class(path: str, trust: Sequence[str]) -> type:
    if not path.startswith((*OURS, OPTIMIZERS)) and path not in trust:
        raise EditError(
            f"the checkpoint names the class {path!r}, which is no part of lke_lightning; if you trust it, allow it "
            f"with --trust {path}, in Python trust=[{path!r}]"
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise EditError(f"the checkpoint names the class {path!r}, which is not there: {error}") from error
    is_ours = isinstance(found, type) and (found.__module__.startswith(OURS) or _is_optimizer(found))
    if not isinstance(found, type) or not (path in trust or is_ours):
        raise EditError(f"the checkpoint names {path!r} as a class, and it is none of lke_lightning's")
    return found


def _is_optimizer(kind: type) -> bool:
    return kind.__module__.startswith(OPTIMIZERS) and issubclass(kind, Optimizer)


def construct(kind: type, arguments: Any) -> Any:
    """Call a class with arguments that a file names; an optimiser is called later, with its parameters.

    Raises:
        EditError: they do not fit.
    """
    made_by: Any = kind.__init__  # type: ignore[misc]  # of the class itself, which is then called
    hints = get_type_hints(made_by) if kind.__module__.startswith("lke_lightning.") else {}
    try:
        wrong = [name for name, value in arguments.items() if name in hints and not fits(value, hints[name])]
        if wrong:
            raise TypeError(f"{wrong[0]} cannot be of type {type(arguments[wrong[0]]).__name__}")
        return partial(kind, **arguments) if issubclass(kind, Optimizer) else kind(**arguments)
    except (TypeError, AttributeError) as error:
        raise EditError(f"the checkpoint's settings of {kind.__name__} do not fit this version: {error}") from error
