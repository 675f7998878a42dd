"""Training batches without an end: epoch after epoch, with a position that a checkpoint can hold."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NotRequired, TypedDict

from s3prl_ext import randomness
from s3prl_ext.errors import DataError
from s3prl_ext.randomness import RandomState
from s3prl_ext.training.batching.like_length import LikeLength


class Position(TypedDict):
    """A position in the training batches: the epoch, its random state at the start, batches taken, the state then.

    With ``runner.group_by_length`` also the state at the start of the group of batches.
    """

    epoch: int
    taken: int
    epoch_start: RandomState
    random: RandomState
    group_start: NotRequired[RandomState | None]


class TrainingBatches:
    """Iterate over the training batches of a task for ever.

    The order of an epoch depends on the random state at its start, so the position is (epoch, that state, batches
    taken). Resuming replays the epoch's batches up to the position without the model and then puts the random
    states of the checkpoint back: with ``num_workers: 0`` the continued run is bitwise the uninterrupted one.

    Args:
        make_loader: builds the DataLoader of an epoch number.
        position: what :meth:`position` returned, or None to start at `epoch`.
        epoch: first epoch where there is no position.
        group: ``runner.group_by_length``: how many batches exchange their clips; None for none.
    """

    def __init__(
        self,
        make_loader: Callable[[int], Any],
        position: Position | None = None,
        epoch: int = 0,
        group: int | None = None,
    ) -> None:
        self._make_loader = make_loader
        self._group = group
        self._grouped: LikeLength | None = None
        self._resume = position
        self.epoch = position["epoch"] if position else epoch
        self.taken = 0
        self.batches_per_epoch = 0
        self._epoch_start: RandomState | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield one batch after the other.

        Raises:
            DataError: an epoch has no batch at all.
        """
        while True:
            if self._resume:
                randomness.set_state(self._resume["epoch_start"])
            self._epoch_start = randomness.get_state()
            self.taken = 0
            loader = self._make_loader(self.epoch)
            self.batches_per_epoch = len(loader)
            iterator = iter(self._in_groups(loader))
            if self._resume:
                self._replay(iterator, self._resume)
                self._resume = None
            for batch in iterator:
                self.taken += 1
                yield batch
            if self.taken == 0:
                raise DataError(
                    f"the training split gives no batch: it holds {len(loader.dataset)} items, fewer than one batch; "
                    "add data or lower the batch size in the task file."
                )
            self.epoch += 1

    def _in_groups(self, loader: Any) -> Any:
        """Return the loader, or what groups its clips by length."""
        if self._group is None:
            return loader
        resumed = self._resume
        at = None if resumed is None else max(0, resumed["taken"] - 1) // self._group
        self._grouped = LikeLength(loader, self._group, at, resumed.get("group_start") if resumed else None)
        return self._grouped

    def _replay(self, iterator: Iterator[Any], position: Position) -> None:
        for _ in range(position["taken"]):
            if next(iterator, None) is None:
                raise DataError(
                    f"cannot resume at batch {position['taken']} of epoch {position['epoch']}: the training split "
                    "now has fewer batches; resume with the data and batch size of the interrupted run."
                )
            self.taken += 1
        randomness.set_state(position["random"])

    def position(self) -> Position | None:
        """Return where the iteration stands, with the random states of now, as plain values; None before its start."""
        if self._epoch_start is None or self._resume is not None:
            return self._resume
        found: Position = {
            "epoch": self.epoch,
            "taken": self.taken,
            "epoch_start": self._epoch_start,
            "random": randomness.get_state(),
        }
        return found if self._grouped is None else {**found, "group_start": self._grouped.group_start}


_PR_SET_PDEATHSIG = 1  # prctl(2)
# found before a worker is forked: in one, a lock of the loader that another thread held would never be freed
_prctl: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class EndWithParent:
    """A ``worker_init_fn`` that lets a worker of a DataLoader live exactly as long as its parent wants (Linux only).

    The kernel kills it once its parent is gone: torch's own watchdog does not wake a worker that waits to hand out a
    batch. A signal that ends the whole group, as of Ctrl-C or ``scancel``, is left to the parent, which finishes its
    step and saves it; only the parent's own SIGTERM ends the worker. Elsewhere than on Linux only Ctrl-C is left to it.

    Args:
        then: the ``worker_init_fn`` that the loader had, or None.
    """

    def __init__(self, then: Any = None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        """Prepare the worker of a number."""
        _leave_signals_to_the_parent()
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            parent = multiprocessing.parent_process()
            if parent is not None and not _exists(parent.pid):
                os._exit(1)  # it was gone before the kernel knew
        if self.then is not None:
            self.then(worker)


def _leave_signals_to_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None or threading.current_thread() is not threading.main_thread():
        return  # a worker that is a thread of the run itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(parent.pid,), daemon=True).start()


def _end_when_told_by(parent: int | None) -> None:
    """Wait for SIGTERM and end this process where `parent` has sent it, as torch's own handler does."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _exists(process: int | None) -> bool:
    try:
        os.kill(process or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def end_with_parent(loader: Any) -> Any:
    """Let the workers of a DataLoader end with this process.

    Return the loader. Another kind of loader is left as it is.
    """
    if getattr(loader, "num_workers", 0) and not isinstance(getattr(loader, "worker_init_fn", None), EndWithParent):
        loader.worker_init_fn = EndWithParent(getattr(loader, "worker_init_fn", None))
    return loader
