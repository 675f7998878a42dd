"""The version of this package is that of the code that runs, in whatever says it."""

from __future__ import annotations

from importlib import metadata

import pytest

import s3prl_ext
from s3prl_ext.configs import PACKAGE_DIR
from s3prl_ext.package_versions import versions_of


@pytest.fixture
def installed_before(monkeypatch):
    """An editable installation whose checkout has moved on: its metadata say what it was."""
    found = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "s3prl_ext" else found(name))


@pytest.mark.usefixtures("installed_before")
def test_the_version_is_that_of_the_code():
    from s3prl_ext.training.results import provenance

    here = s3prl_ext.__version__
    assert versions_of(("s3prl_ext", "torch", "absent-package")) == {
        "s3prl_ext": here, "torch": metadata.version("torch"), "absent-package": None,
    }  # fmt: skip
    assert provenance.versions()["s3prl_ext"] == here


def test_the_metadata_of_installations_are_read_in_one_place():
    """But for the page of ``doctor``, which shows distributions."""
    files = {path.stem for path in PACKAGE_DIR.rglob("*.py") if "metadata.version(" in path.read_text(encoding="utf-8")}
    assert files == {"package_versions", "doctor"}
