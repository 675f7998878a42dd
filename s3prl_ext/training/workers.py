"""Processes that load data end with the process that they load it for, even one that is killed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)
# found before a worker is forked: in one, a lock of the loader that another thread held would never be freed
_prctl: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class EndWithParent:
    """A ``worker_init_fn`` that lets the kernel kill a worker of a DataLoader once its parent is gone (Linux only).

    torch's own watchdog does not wake a worker that waits to hand out a batch. Elsewhere than on Linux nothing changes.

    Args:
        then: the ``worker_init_fn`` that the loader had, or None.
    """

    def __init__(self, then: Any = None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        """Prepare the worker of a number."""
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            parent = multiprocessing.parent_process()
            if parent is not None and not _exists(parent.pid):
                os._exit(1)  # it was gone before the kernel knew
        if self.then is not None:
            self.then(worker)


def _exists(process: int | None) -> bool:
    try:
        os.kill(process or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def end_with_parent(loader: Any) -> Any:
    """Let the workers of a DataLoader end with this process; return the loader. Another kind of loader is left as it is."""
    if getattr(loader, "num_workers", 0) and not isinstance(getattr(loader, "worker_init_fn", None), EndWithParent):
        loader.worker_init_fn = EndWithParent(getattr(loader, "worker_init_fn", None))
    return loader
