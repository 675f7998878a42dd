"""An order of the entries of a large tensor in which memory reads and writes them sooner than from first to last.

Chosen entries of a weight matrix lie in almost every line of the processor's cache, or far apart. Followed from the
first to the last they are one stream of accesses, and the processor waits for each line. An eighth of the entries on,
two eighths on and so forth are streams of their own: visited in turn they are fetched at once.
"""

from __future__ import annotations

import torch

STREAMS = 8
FEWEST = 1 << 12  # entries of a tensor from which on the order matters


def interleaved(entries: torch.Tensor) -> torch.Tensor:
    """Return a vector with each eighth's first element, then each eighth's second, and so on; a rest stays last.

    Args:
        entries: any vector [k].
    """
    whole = len(entries) // STREAMS * STREAMS
    return torch.cat([entries[:whole].view(STREAMS, -1).t().reshape(-1), entries[whole:]])


def sorted_again(entries: torch.Tensor) -> torch.Tensor:
    """Undo :func:`interleaved`.

    Args:
        entries: what it returned [k].
    """
    whole = len(entries) // STREAMS * STREAMS
    return torch.cat([entries[:whole].view(-1, STREAMS).t().reshape(-1), entries[whole:]])
