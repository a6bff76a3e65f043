"""Push what was exported to the Hugging Face Hub, through its own client."""

from __future__ import annotations

from pathlib import Path

from lke_lightning.edits import EditError
from lke_lightning.export.card import CARD


def check(name: str) -> None:
    """Check, before any work and without asking the hub, that something can be pushed under a name.

    Raises:
        EditError: it is no name of a repository, nobody is logged in, or the hub is switched off.
    """
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise EditError(f"--push_to_hub {name!r} is no name of a repository, such as owner/name: {error}") from error
    if is_offline_mode():
        raise EditError("--push_to_hub needs the hub, which HF_HUB_OFFLINE switches off: unset it")
    if get_token() is None:
        raise EditError("--push_to_hub needs a token for the hub that may write: `hf auth login`, or set HF_TOKEN")


def push(output: Path, card: str | None, name: str, private: bool) -> str:
    """Push a folder, or a file with a model card, in one commit; a repository that is not there yet is made.

    Args:
        output: what was exported; a folder has its card in it.
        card: the model card beside a file; `None`: it is a folder, which has one.
        name: of the repository, `owner/name` or a name of one's own.
        private: nobody else may see it.

    Returns:
        The address of the repository.

    Raises:
        EditError: it cannot be pushed, or is asked to be private and is public already; the export stays where it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files: dict[str, Path | bytes]
    if card is None:
        files = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*")) if path.is_file()}
    else:
        files = {output.name: output, CARD: card.encode()}
    adds, api = [CommitOperationAdd(*file) for file in files.items()], HfApi()
    try:
        name = api.create_repo(name, private=private or None, exist_ok=True).repo_id
        is_seen = private and not api.model_info(name).private  # it was there before
        done = None if is_seen else api.create_commit(name, adds, commit_message="Upload an edited model")
    except Exception as error:  # of the client, of what it calls over the network with, of Xet in Rust
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise EditError(
            f"{output} is written, but could not be pushed ({reason}): push it later with `hf upload {name} {output}`"
        ) from error
    if done is None:
        raise EditError(f"{name} is public on the hub, and --private was asked for: {output} stays where it is")
    return done.repo_url.url
