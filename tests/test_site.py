"""The site of ``make docs``: every page and every docstring that it names, built without a warning."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.documentation import ROOT


def test_the_site_builds_without_a_warning(tmp_path):
    for needed in ("mkdocs", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed, reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in (tmp_path / "site").glob("*.html")}
    reference = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("s3prl_ext.extensions.register_upstream", "s3prl_ext.merging.merge.merge_attention"):
        assert f'id="{name}"' in reference, name
    for page in (tmp_path / "site").glob("*.html"):
        assert not re.search(r'href="\.\./', page.read_text(encoding="utf-8")), page.name
