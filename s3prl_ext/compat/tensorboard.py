"""tensorboardX: a run ends where its event files cannot be written, on a full disk or without memory for a thread."""

from __future__ import annotations

import functools
import logging
import queue
from types import ModuleType, SimpleNamespace

from s3prl_ext.compat.shim import Shim

logger = logging.getLogger(__name__)


class EventQueue(queue.Queue):
    """Hands events from the training to the thread that writes them, which the training never waits for.

    Args:
        size: ignored: a thread that has ended would let a bounded queue fill up.
    """

    def __init__(self, size: int = 0) -> None:
        super().__init__()

    def close(self) -> None:
        """Do nothing: there is no process at the other end."""


def _hand_over_in_memory(module: ModuleType) -> None:
    write = module._EventLoggerThread.run

    @functools.wraps(write)
    def write_while_possible(self) -> None:
        try:
            write(self)
        except (OSError, MemoryError) as error:
            file = self._record_writer._file_name
            logger.warning("TensorBoard's curves in %s end here: %s", file, error or "no memory is left")

    module.multiprocessing = SimpleNamespace(Queue=EventQueue)
    module._EventLoggerThread.run = write_while_possible


SHIMS = (
    Shim(
        name="tensorboard-events",
        module="tensorboardX.event_file_writer",
        needed=lambda module: not hasattr(module._EventLoggerThread.run, "__wrapped__"),
        apply=_hand_over_in_memory,
        reason="tensorboardX hands events to its writing thread through a queue between processes, which needs a "
        "thread of its own: where that cannot start for lack of memory, or the writing one has ended at a full "
        "disk, the run waits for ever",
        remove_when="tensorboardX uses queue.Queue and ends its thread without being asked",
    ),
)
