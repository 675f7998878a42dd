"""What reading and writing single weights costs by itself: the bound of a child network's optimizer step.

``python -m benchmarks.random_access``: entries drawn from 85,054,464 float32 weights, in order, are read into a vector
and written back from one; by a loop in C of nothing but that (compiled with ``cc -O2``), by the same loop fetching
lines ahead, and by torch's ``index_select`` and ``scatter_``. Before each, the processor's cache is filled with
something else.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch

from benchmarks import measure
from benchmarks.mask_selection import DENSITIES

WEIGHTS = 85_054_464
AHEAD = 48  # entries
SOURCE = f"""
#define LOOP(name, fetch, act) void name(float *w, const int *i, float *v, long n) \\
    {{ for (long k = 0; k < n; k++) {{ fetch; act; }} }}
LOOP(c_read, , v[k] = w[i[k]])
LOOP(c_write, , w[i[k]] = v[k])
LOOP(c_read_ahead, __builtin_prefetch(w + i[k + {AHEAD} < n ? k + {AHEAD} : n - 1], 0), v[k] = w[i[k]])
LOOP(c_write_ahead, __builtin_prefetch(w + i[k + {AHEAD} < n ? k + {AHEAD} : n - 1], 1), w[i[k]] = v[k])
"""
LOOPS = ("c_read", "c_read_ahead", "c_write", "c_write_ahead")


def compiled() -> Any:
    """Compile the loops and return them as a library; stop where there is no compiler."""
    if shutil.which("cc") is None:
        raise SystemExit("no C compiler is installed: put `cc` on the PATH, for example by `apt install gcc`.")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "loops.c"), Path(folder, "loops.so")
        source.write_text(SOURCE)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def compare(loops: Any, weights: torch.Tensor, density: float, runs: int) -> dict[str, float]:
    """Return the row of one density, milliseconds of CPU time."""
    entries = torch.nonzero(torch.rand(len(weights)) < density).view(-1)
    indices, values = entries.int(), torch.zeros(len(entries))
    other = torch.zeros(30_000_000)

    def loop(name: str) -> Callable[[], None]:
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in (weights, indices, values)]
        return lambda: getattr(loops, name)(*addresses, ctypes.c_long(len(entries)))

    ways: dict[str, Callable[[], Any]] = {name: loop(name) for name in LOOPS}
    ways["torch_read"] = lambda: torch.index_select(weights, 0, indices, out=values)
    ways["torch_write"] = lambda: weights.scatter_(0, entries, values)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            other.fill_(0)
            start = process_time()
            way()
            taken[name].append(process_time() - start)
    return {"entries": len(entries), **{f"{name}_ms": 1e3 * median(values) for name, values in taken.items()}}


def main() -> None:
    """Time the three densities and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="passes timed (default 9)")
    flags = parser.parse_args()
    torch.manual_seed(0)
    loops, weights = compiled(), torch.ones(WEIGHTS)
    rows = {f"density {density:g}": compare(loops, weights, density, flags.runs) for density in DENSITIES}
    measure.report("random_access", rows)


if __name__ == "__main__":
    main()
