"""One run per folder: locks that the kernel frees, and unfinished files that are removed only under one.

A lock is ``flock`` on a file that names its holder. It ends with its process, SIGKILL included, and the file goes when
it ends in an orderly way. Over NFS, Linux passes such locks to the server, so they hold between machines where its lock
service runs; a file system without locks is warned about, and the run continues unprotected.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from s3prl_ext.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FOLDER_LOCK = ".lock"  # in a folder: of the run, sweep or race that writes there
EVALUATION_LOCK = ".evaluating"  # in a folder: shared by evaluations
FILES = (FOLDER_LOCK, EVALUATION_LOCK)
UNFINISHED = re.compile(
    r"\..+\.[0-9a-f]{16}|\.tmp.{6}"
)  # what writing.written, evaluations of diarization and safetensors write before they rename
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_held: dict[Path, list[int]] = {}  # lock file -> descriptor and how often this process has taken it
_made: dict[Path, list[Path]] = {}  # lock file -> folders that were made for it, deepest first
PATIENCE_S = 0.5  # how long another process may take to clear a folder


class InUse(UsageError):
    """Another process writes into a folder."""


def _close_inherited() -> None:
    """Let a forked process, such as a DataLoader worker, not hold the locks of its parent."""
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()
    _made.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def one_run(folder: str | os.PathLike, active: bool = True) -> Iterator[None]:
    """Hold a folder for the body, as the only run, sweep or race that writes into it; again in one process is allowed.

    Args:
        folder: made where it is missing, and removed again where it is then empty.
        active: False on ranks other than the first, which do nothing here.

    Raises:
        InUse: another process holds it; the message names it and its machine.
    """
    if not active:
        yield
        return
    hold(folder)
    try:
        yield
    finally:
        release(folder)


def is_in_use(folder: str | os.PathLike) -> bool:
    """Return whether another process holds a folder as its only writer."""
    try:
        with one_run(folder):
            return False
    except InUse:
        return True


def hold(folder: str | os.PathLike) -> None:
    """Take the lock of :func:`one_run` until :func:`release`, or the end of the process.

    Raises:
        InUse: another process holds it.
        UsageError: it cannot be made.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return  # whoever writes there says that it is a file
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"the folder {folder} cannot be made ({reason}): choose another one with -p.") from error
    _take(folder / FOLDER_LOCK, f"{folder} is in use", patience=PATIENCE_S, made=missing)


def release(folder: str | os.PathLike) -> None:
    """Give the lock of a folder back; a folder that holds nothing else then goes if :func:`hold` has made it."""
    _give_back(Path(folder) / FOLDER_LOCK)


def release_all() -> None:
    """Give everything back that this process holds, at the end of a command."""
    for lock, held in list(_held.items()):
        held[1] = 1
        _give_back(lock)


@contextmanager
def one_writer(path: str | os.PathLike | None) -> Iterator[None]:
    """Hold the name of a file or folder that is to be made, and remove what killed processes left of it.

    Args:
        path: None for a command that writes nothing.

    Raises:
        InUse: another process is making it.
    """
    if path is None:
        yield
        return
    path = Path(path)
    lock = path.with_name(f".{path.name}{FOLDER_LOCK}")
    if path.parent.is_dir():
        _take(lock, f"{path} is being written")
    try:
        if _held.get(lock.parent.resolve() / lock.name, (0, 0))[1] == 1:  # not again in this process
            for part in path.parent.glob(f".{_escaped(path.name)}.partial-*"):
                if not part.name.endswith("-old"):  # an earlier build, which its maker moves back
                    logger.info("removing %s, which a killed command left unfinished", part)
                    shutil.rmtree(part, ignore_errors=True)
        yield
    finally:
        _give_back(lock)


@contextmanager
def evaluation(folder: str | os.PathLike, active: bool = True) -> Iterator[None]:
    """Let evaluations run at the same time as each other and as a training.

    One that is alone clears what others left.
    """
    lock = Path(folder) / EVALUATION_LOCK
    if not active or not lock.parent.is_dir():
        yield
        return
    with ExitStack() as stack:
        remove_unfinished(folder)
        try:
            _take(lock, "", exclusive=False, patience=PATIENCE_S)
            stack.callback(_give_back, lock)
        except InUse:  # a training is clearing the folder
            pass
        yield


def remove_unfinished(folder: str | os.PathLike, below: tuple[str, ...] = ()) -> None:
    """Remove files and folders that killed processes left unfinished, unless another process may be writing them.

    Args:
        folder: of an experiment.
        below: patterns of folders in it that are cleared too, such as ``race/*``.
    """
    folder = Path(folder)
    locks = [folder / name for name in FILES]
    taken = []
    try:
        for lock in locks:
            _take(lock, "")
            taken.append(lock)
    except InUse:
        return
    else:
        for place in (folder, *(path for pattern in below for path in folder.glob(pattern))):
            for part in place.iterdir() if place.is_dir() else ():
                if not UNFINISHED.fullmatch(part.name):
                    continue
                logger.info("removing %s, which a killed process left unfinished", part)
                if part.is_dir() and not part.is_symlink():
                    shutil.rmtree(part, ignore_errors=True)
                else:
                    part.unlink(missing_ok=True)
    finally:
        for lock in taken:
            _give_back(lock)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _take(lock: Path, problem: str, exclusive: bool = True, patience: float = 0.0, made: Sequence[Path] = ()) -> None:
    """Take a lock file, or count once more where this process has it; do nothing where no file can be made.

    Args:
        lock: the file.
        problem: beginning of the sentence for a lock that another process has.
        exclusive: False to share it.
        patience: seconds to wait for another process.
        made: folders that were made for it.

    Raises:
        InUse: another process has it.
    """
    lock = lock.parent.resolve() / lock.name
    if lock in _held:
        _held[lock][1] += 1
        return
    until = time.monotonic() + patience
    descriptor = None
    while descriptor is None and fcntl is not None:
        try:
            descriptor = _locked(lock, exclusive)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise InUse(f"{problem} by {error.strerror}: wait for it to end, or name another folder.") from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in NO_LOCKS:
                logger.warning("%s: this file system has no locks; do not start two runs in one folder", lock.parent)
            return  # whoever writes there says why that cannot be
    if descriptor is not None:
        _held[lock] = [descriptor, 1]
        _made[lock] = list(made)


def _locked(lock: Path, exclusive: bool) -> int | None:
    """Return the descriptor of a lock file that is now ours, or None where its last holder removed it meanwhile.

    Raises:
        BlockingIOError: another process has it; ``strerror`` names it.
        OSError: it cannot be made, or the file system has no locks.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        if not _is_current(descriptor, lock):
            os.close(descriptor)
            return None
        if exclusive:
            _write_holder(descriptor)
        return descriptor
    except BlockingIOError as error:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace") or "another process"
        os.close(descriptor)
        raise BlockingIOError(error.errno, holder) from None
    except OSError:
        os.close(descriptor)
        raise


def _give_back(lock: Path) -> None:
    lock = lock.parent.resolve() / lock.name
    if lock not in _held:
        return
    _held[lock][1] -= 1
    if _held[lock][1]:
        return
    descriptor, _ = _held.pop(lock)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody shares it
        if _is_current(descriptor, lock):
            lock.unlink()
    for folder in _made.pop(lock, ()):
        with suppress(OSError):
            folder.rmdir()
    os.close(descriptor)


def _is_current(descriptor: int, lock: Path) -> bool:
    """Tell whether an open lock file still has its name, so that others meet it."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(lock).stat())
    except OSError:
        return False


def _write_holder(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except OSError:  # a full disk: the lock holds without the name
        pass
