"""A Python of its own for tests, with the start-up hook of the repository or without any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run(
    folder: Path, *arguments: str, hook: bool = True, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` in `folder`.

    The hook is brought in by a ``sitecustomize`` that reads the repository's ``.pth`` file, so that the result does not
    depend on how the package is installed here. Child processes inherit it.
    """
    start = folder / "start"
    start.mkdir(exist_ok=True)
    (start / "s3prl_ext.pth").write_text((REPOSITORY / "s3prl_ext.pth").read_text(encoding="utf-8"), encoding="utf-8")
    (start / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(start)!r})\n", encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(start), str(REPOSITORY)])}
    environment["S3PRL_EXT_AUTOLOAD"] = "1" if hook else "0"
    environment.update(variables)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=check,
    )
