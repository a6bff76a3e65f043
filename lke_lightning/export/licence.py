"""What the unedited model says of its name on the hub and of its licence; nothing is guessed."""

from __future__ import annotations

from pathlib import Path

from lke_lightning.editor import Editor
from lke_lightning.model import gguf
from lke_lightning.model.language_model import resolve

KEYS = ("license", "license_name", "license_link")
"""What the header of a model card says of a licence, by the hub's names."""


def base_on_hub(editor: Editor) -> str | None:
    """Return the base model's name on the hub, if its files were fetched from there."""
    name = resolve(editor.pretrained)
    if Path(name).exists():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        where, file = gguf.located(name) if name.endswith(gguf.SUFFIX) else (name, {})
        known = try_to_load_from_cache(where, file.get("gguf_file", "config.json"))
    except HFValidationError:  # the class of a network that was made in Python
        return None
    return where if isinstance(known, str) else None


def licence_of(editor: Editor) -> dict[str, str]:
    """Return the licence that the base model's own card or GGUF file names, under the hub's keys; empty: none."""
    name = resolve(editor.pretrained)
    on_hub = base_on_hub(editor)
    if on_hub is None and not Path(name).exists():
        return {}
    file = gguf.file_of(name)
    if file is not None:
        field = gguf.opened(file).fields.get("general.license")
        return {"license": str(field.contents()).strip().lower()} if field is not None else {}
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        path = Path(name, "README.md") if on_hub is None else Path(hf_hub_download(on_hub, "README.md"))
        found = ModelCard.load(path).data.to_dict() if path.is_file() else {}
    except Exception:  # a header that is no YAML, a card that cannot be reached: it says nothing
        return {}
    return {key: found[key] for key in KEYS if isinstance(found.get(key), str)}
