"""The processes of one run under ``torchrun``: who is rank 0, how they agree, how they stop, what a lost one leads to.

Agreement goes over a gloo group of its own, also where gradients go over NCCL: rank 0 evaluates alone, and the others
may wait for it longer than a gradient may take. Without several processes every function here is trivial.

Ctrl-C and SIGTERM are requests: the training finishes its step, saves, and then stops.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from s3prl_ext.configs import Record
from s3prl_ext.errors import DataError, StoppedByUser, is_lost_worker


class Interrupted(Exception):
    """The user or the scheduler asked the run to stop."""


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a flag; a second SIGINT stops at once.

    From then on a worker of a DataLoader that ends raises no error, which torch would do wherever the run just is, such
    as in the middle of a step or of a file; only who waits for its batch gets one, see :meth:`or_lost_worker`.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.requested = False
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if self._enabled:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        multiprocessing.active_children()  # takes note of workers that have ended, of which torch would tell now
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        self.requested = True

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def or_lost_worker(self, within_step: bool = False) -> Iterator[None]:
        """Around what reads batches: where a worker was lost after a stop was asked for, that is the stop.

        Args:
            within_step: batches before this one have left gradients that no checkpoint holds.

        Raises:
            Interrupted: a worker was lost.
            StoppedByUser: one was lost within a step, or other ranks may wait for this one: nothing can be saved.
        """
        try:
            yield
        except RuntimeError as error:
            if not self.requested or not is_lost_worker(error):
                raise
            if within_step or active():
                raise StoppedByUser(
                    "interrupted, and a process that loads data with it: the checkpoints are kept, resume with -a."
                ) from error
            raise Interrupted from error


T = TypeVar("T")

LEADER = 0
LONGEST_EVALUATION = timedelta(hours=6)  # how long the other ranks wait for rank 0
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket closed|timed out|timeout|read error|pair closure|heartbeat",
    re.IGNORECASE,
)

_groups: Record = {}  # "default": the process group for which "agreement" was made


def is_leader() -> bool:
    """Return whether this process logs, evaluates and saves: rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == LEADER


def active() -> bool:
    """Return whether this process is one of a group, as ``torchrun`` starts them (perhaps of one)."""
    return dist.is_initialized()


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        any_of(False)


def any_of(flag: bool) -> bool:
    """Return, on every rank, whether `flag` is set on any of them."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor([float(flag)])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=_agreement())
    return bool(flags)


def from_leader(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 alone; return its result on every rank.

    Raises:
        Interrupted: on every rank, where `make` raised it.
        DataError: on the other ranks, where `make` raised anything else.
    """
    if not dist.is_initialized():
        return make()
    answer: list[Any] = [None, None]
    failed: BaseException | None = None
    if is_leader():
        try:
            answer = ["value", make()]
        except Exception as error:  # noqa: BLE001  raised below, after the others were told
            answer, failed = ["interrupted" if isinstance(error, Interrupted) else "failed", None], error
    dist.broadcast_object_list(answer, src=LEADER, group=_agreement())
    if failed is not None:
        raise failed
    if answer[0] == "interrupted":
        raise Interrupted
    if answer[0] == "failed":
        raise DataError("aborted because rank 0 failed; see its log.")
    return answer[1]


def gather(value: Any) -> list[Any]:
    """Return the plain `value` of every rank, in their order, on rank 0; on the others only their own."""
    if not dist.is_initialized():
        return [value]
    found = [None] * dist.get_world_size() if is_leader() else None
    dist.gather_object(value, found, dst=LEADER, group=_agreement())
    return [value] if found is None else found


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Turn the error of a collective whose other side is gone into one sentence.

    Raises:
        DataError: another rank exited or timed out.
    """
    number, count, several = rank(), world_size(), active()
    try:
        yield
    except RuntimeError as error:
        if not several or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        raise DataError(
            f"another rank exited or timed out (seen by rank {number} of {count}); see its log; the checkpoints are "
            "kept, resume with -a and as many processes."
        ) from error


def _agreement() -> Any:
    """Return the gloo group of all ranks, made at the first call."""
    default = dist.group.WORLD
    if _groups.get("default") is not default:
        _groups["agreement"] = dist.new_group(backend="gloo", timeout=LONGEST_EVALUATION)
        _groups["default"] = default
    return _groups["agreement"]
