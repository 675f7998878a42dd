"""The versions of packages that run now: this one's own as its code says, the others' as they were installed.

The metadata of an editable installation of this package keep the version of the day it was installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import metadata

import s3prl_ext


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package; None for one that is not installed."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    return s3prl_ext.__version__ if package == s3prl_ext.__name__ else _installed(package)


@cache
def _installed(package: str) -> str | None:
    """Return the version of a distribution; its files are read once, as its code is."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
