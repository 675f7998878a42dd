"""Models on the Hugging Face hub: how one is named, fetched and recorded, and what to do without the hub.

``HF_ENDPOINT``, ``HF_HUB_CACHE`` (or ``HF_HOME``), ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` act as they do in
huggingface_hub.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from s3prl_ext.errors import DataError

logger = logging.getLogger(__name__)

ADDRESS = "https://huggingface.co"
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(
    rf"(?P<repo>{_PART}(?:/{_PART})?)(?::(?P<file>{_PART}(?:/{_PART})*))?(?:@(?P<revision>{_PART}(?:/{_PART})*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Released:
    """A file whose content is known from elsewhere.

    Attributes:
        size: in bytes.
        sha256: of the content.
    """

    size: int
    sha256: str


# BEATs of microsoft/unilm (MIT), whose own links are dead: bytes and SHA-256 as several public projects record them for
# the files of the authors' links and of this mirror.
RELEASED = {
    "BEATs_iter3.pt": Released(
        361_499_833, "8d1b234032a9ccff353612dc6c20982346dc2968b205b79d97303eb5e77bfb34"
    ),
    "BEATs_iter3_finetuned_on_AS2M_cpt1.pt": Released(
        363_145_291, "379369a41d0b3749f746cdcea8036de506cb3aedecce84de7db0a75fda2a4fe7"
    ),
}  # fmt: skip
MIRRORS = ("lpepino/beats_ckpts",)  # repositories whose files are compared with RELEASED


@dataclass(frozen=True)
class Reference:
    """What ``ID``, ``ID@REVISION``, ``ID:FILE`` or ``ID:FILE@REVISION`` names.

    Attributes:
        repo: id of the repository.
        file: one file of it; None for the model folder.
        revision: branch, tag or commit; None for the newest.
    """

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo + (f":{self.file}" if self.file else "") + (f"@{self.revision}" if self.revision else "")


_resolved: dict[str, str] = {}  # name as given -> commit


def parse(name: str) -> Reference | None:
    """Return what a name refers to on the hub, or None where it cannot be a name there.

    Raises:
        DataError: it is the address of a page of the hub.
    """
    address = re.match(rf"https?://(?:huggingface\.co|hf\.co)/({_PART}(?:/{_PART})?)/?(?:tree/.*)?$", name)
    if address:
        raise DataError(f"{name} is the address of a page: give the id, {address[1]}, or a local folder.")
    found = _NAME.fullmatch(name)
    return Reference(found["repo"], found["file"], found["revision"]) if found else None


def is_file_reference(name: object) -> TypeGuard[str]:
    """Return whether a text names one file on the hub (``ID:FILE``) and nothing on this disk."""
    if not isinstance(name, str) or Path(name).expanduser().exists() or "://" in name:
        return False
    found = _NAME.fullmatch(name)
    return found is not None and found["file"] is not None


def offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` keeps to the local cache."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def resolved() -> dict[str, str]:
    """Return the commit behind each name that this process has fetched from the hub or its cache."""
    return dict(_resolved)


def snapshot(
    reference: Reference, patterns: Sequence[Sequence[str]], weights: Sequence[str], is_whole: Callable[[Path], bool]
) -> Path:
    """Return the folder of a model in the local cache, with what is needed of it.

    Args:
        reference: a repository.
        patterns: files to fetch: the first list, and where the weights are not among them the next.
        weights: names of files with weights, for the message.
        is_whole: tells whether a folder holds the weights.

    Raises:
        DataError: the hub does not give it, or it contains no weights.
    """
    from huggingface_hub import snapshot_download

    logger.info("Getting %s from the Hugging Face hub%s", reference, " (local cache only)" if offline() else "")
    folder = Path()
    for allowed in patterns:
        try:
            folder = Path(snapshot_download(
                reference.repo, revision=reference.revision, allow_patterns=list(allowed), **_where()
            ))  # fmt: skip
        except Exception as error:  # the hub client raises its own, httpx's and OSError
            raise _not_given(reference, error) from error
        if is_whole(folder):
            return _remember(reference, folder, folder)
    if offline():
        raise _in_part(reference, folder)
    raise DataError(
        f"'{reference}' contains no model weights in a form that is read here ({', '.join(weights)}), or the hub could "
        f"not be reached and the local cache has it only in part ({folder})."
    )


def file(reference: Reference, again: bool = False) -> Path:
    """Return one file of a repository in the local cache; a file of :data:`RELEASED` is verified when it is fetched.

    Args:
        reference: with a file.
        again: fetch it anew, also where the cache has it.

    Raises:
        DataError: the hub does not give it, or its content is another.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    assert reference.file is not None
    where = _where()
    cached = try_to_load_from_cache(
        reference.repo, reference.file, cache_dir=where.get("cache_dir"), revision=reference.revision
    )
    try:
        where["force_download"] = again and not offline()
        path = Path(hf_hub_download(reference.repo, reference.file, revision=reference.revision, **where))
    except Exception as error:  # the hub client raises its own, httpx's and OSError
        raise _not_given(reference, error) from error
    known = RELEASED.get(reference.file) if reference.repo in MIRRORS else None
    if known is not None and (again or str(path) != cached):
        _verify(path, known, reference)
    return _remember(reference, path, path.parents[reference.file.count("/")])


def _verify(path: Path, known: Released, reference: Reference) -> None:
    with open(path, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if path.stat().st_size == known.size and found == known.sha256:
        return
    size = path.stat().st_size
    path.resolve().unlink()
    raise DataError(
        f"'{reference}' is not the released {reference.file}: it has {size} bytes and the SHA-256 {found}, not "
        f"{known.size} and {known.sha256}. It was removed; get the file from another place and name it with -k."
    )


def _remember(reference: Reference, path: Path, folder: Path) -> Path:
    if _COMMIT.fullmatch(folder.name):
        _resolved[str(reference)] = folder.name
    return path


def endpoint() -> str | None:
    """Return the address that ``HF_ENDPOINT`` names now, which the client reads only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _where() -> dict[str, Any]:
    """Return endpoint and cache as the environment names them now, which the client reads only when it is imported."""
    named = {"endpoint": endpoint(), "cache_dir": os.environ.get("HF_HUB_CACHE")}
    return {key: value for key, value in named.items() if value} | {"local_files_only": offline()}


def _not_given(reference: Reference, error: BaseException) -> DataError:
    """Return the sentence for an error of the hub client: what, and what to do."""
    from huggingface_hub import errors, try_to_load_from_cache

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    name = f"'{reference}'"
    if any_is(errors.GatedRepoError):
        return DataError(
            f"{name} is gated: accept its conditions on its page on the Hugging Face hub, then log in with `hf auth "
            "login`, or set HF_TOKEN."
        )
    if any_is(errors.RevisionNotFoundError):
        return DataError(f"{reference.repo} has no revision '{reference.revision}' on the Hugging Face hub.")
    if any_is(errors.RepositoryNotFoundError, errors.HFValidationError):
        return DataError(
            f"{name} is neither a folder here nor a public model on the Hugging Face hub: check the name; for a "
            "private one log in with `hf auth login`, or set HF_TOKEN."
        )
    if any_is(errors.EntryNotFoundError) and not any_is(errors.LocalEntryNotFoundError):
        return DataError(f"{reference.repo} has no file '{reference.file}' on the Hugging Face hub{_at(reference)}.")
    if offline():
        known = try_to_load_from_cache(
            reference.repo, "config.json", cache_dir=_where().get("cache_dir"), revision=reference.revision
        )
        if isinstance(known, str):
            return _in_part(reference, Path(known).parent)
        return DataError(
            f"{name} is neither a folder here nor in the local cache, and HF_HUB_OFFLINE is set: fetch it once without "
            "that, or give a local folder."
        )
    reason = " ".join(str(error).split())[:160]
    return DataError(
        f"{name} is not a folder here, and the Hugging Face hub could not be reached or stopped answering ({reason}): "
        "the same command resumes; behind a firewall set HF_ENDPOINT to a mirror, or give a local folder."
    )


def _in_part(reference: Reference, folder: Path) -> DataError:
    return DataError(
        f"the local cache holds '{reference}' only in part ({folder}), and HF_HUB_OFFLINE is set: "
        "fetch it once without that."
    )


def _at(reference: Reference) -> str:
    return f" at revision {reference.revision}" if reference.revision else ""
