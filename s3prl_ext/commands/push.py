"""``s3prl-ext push``: upload what ``export`` or ``merge`` wrote, with its card, to the Hugging Face hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from s3prl_ext import hub
from s3prl_ext.commands.flags import push as flags_of
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import EXPORT_FILE
from s3prl_ext.run_folder import MERGE_FILE

if TYPE_CHECKING:  # imported where it is used
    from huggingface_hub import ModelCard

logger = logging.getLogger(__name__)

CARD = "README.md"
ADAPTER, VECTOR = "adapter_config.json", "task_vector.safetensors"
WRITTEN = (EXPORT_FILE, MERGE_FILE, ADAPTER, VECTOR)  # one of them is in every folder that export or merge writes
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")  # suffixes


def main(argv: Sequence[str] | None = None) -> int:
    """Upload a folder, or show what would be uploaded; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    args = flags_of.parser().parse_args(argv)
    reference = hub.parse(args.repo)
    if reference is None or reference.file or "/" not in reference.repo:
        raise UsageError(f"{args.repo!r} is not a name of a repository: write OWNER/NAME, or OWNER/NAME@BRANCH.")
    files = files_of(args.folder)
    card = filled_card(args.folder, reference.repo)
    if args.dry_run:
        sys.stdout.write(
            summary(args.folder, files, card) + "\n\nWeights, their indices and records in the repository that are not "
            "listed here are deleted from it by an upload.\nNothing was sent.\n"
        )
        return 0
    message = args.message or f"{args.folder.name}, written by s3prl_ext"
    address, deleted = upload(files, card, args.folder, reference, message, args.public)
    if deleted:
        sys.stdout.write(f"deleted from {reference.repo}, as this folder does not have them: {', '.join(deleted)}\n")
    sys.stdout.write(f"{address}\n")
    return 0


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder of ``export`` or ``merge``; hidden ones are left out.

    Raises:
        DataError: it is something else.
    """
    if not any((folder / name).is_file() for name in WRITTEN) or not (folder / CARD).is_file():
        raise DataError(
            f"{folder} was not written by s3prl-ext export or merge (it needs {CARD} and one of {', '.join(WRITTEN)}): "
            "export the run first."
        )
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def filled_card(folder: Path, repo: str) -> ModelCard:
    """Return the folder's ``ModelCard``, with the library that loads the model, its scores under the repository's name.

    Args:
        repo: ``OWNER/NAME``.

    Raises:
        DataError: its header is not a card's.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard.load(folder / CARD)
    except Exception as error:  # YAML's errors, and ValueError of a header that is none
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the header of {folder / CARD} cannot be read ({reason}): export again.") from error
    libraries = {ADAPTER: "peft", VECTOR: "s3prl", "config.json": "transformers"}
    card.data.library_name = next(
        (library for name, library in libraries.items() if (folder / name).is_file()), "s3prl"
    )
    if card.data.eval_results:
        card.data.model_name = repo.rpartition("/")[2]
    return card


def summary(folder: Path, files: Sequence[Path], card: ModelCard) -> str:
    """Return the files with their sizes and the card's header."""
    width = max(len(str(path.relative_to(folder))) for path in files)
    rows = [f"{path.relative_to(folder)!s:{width}}  {path.stat().st_size:>13,} bytes" for path in files]
    return "\n".join([*rows, "", card.data.to_yaml().strip()])


def upload(
    files: Sequence[Path], card: ModelCard, folder: Path, reference: hub.Reference, message: str, public: bool
) -> tuple[str, list[str]]:
    """Send the files in one commit, in a repository that is made where it is missing.

    The commit deletes weights, their indices and records of an earlier upload that the folder does not have: a library
    that finds them would load them in place of those that are sent.

    Returns:
        The commit's address, and the names of the files that it deleted.

    Raises:
        DataError: the hub does not take them.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if hub.offline():
        raise DataError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it.")
    api = HfApi(endpoint=hub.endpoint())
    content = {path: str(card).encode() if path == folder / CARD else str(path) for path in files}
    added = {path.relative_to(folder).as_posix(): source for path, source in content.items()}
    try:
        api.create_repo(reference.repo, private=not public, exist_ok=True)
        present = api.list_repo_files(reference.repo, revision=reference.revision)
        deleted = sorted(name for name in present if name not in added and _is_loaded(name))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, source) for name, source in added.items()),
            *(CommitOperationDelete(name, is_folder=False) for name in deleted),
        ]
        done = api.create_commit(
            reference.repo, operations, commit_message=message, revision=reference.revision, num_threads=2
        )
    except Exception as error:  # the hub client raises its own, httpx's, ValueError, RuntimeError and OSError
        raise _refused(reference, error) from error
    return str(done.commit_url), deleted


def _is_loaded(name: str) -> bool:
    """Tell whether a file of a repository decides which weights are loaded from it."""
    path = PurePosixPath(name)
    return len(path.parts) == 1 and (name in WRITTEN or path.suffix in WEIGHTS or name.endswith(".index.json"))


def _refused(reference: hub.Reference, error: BaseException) -> DataError:
    """Return the sentence for an upload that the hub did not take."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return DataError(
            f"{reference.repo} has no branch '{reference.revision}': make it on its page, or leave it out."
        )
    if status in (401, 403):
        return DataError(
            f"the hub does not let you write to {reference.repo}: log in with `hf auth login` with a token that may "
            "write, or set HF_TOKEN, and check the owner's name."
        )
    reason = " ".join(str(error).split())[:200]
    return DataError(
        f"{reference.repo} was not uploaded ({reason}): the same command tries again, and sends only what is missing."
    )
