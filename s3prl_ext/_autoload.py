"""What the start-up hook ``s3prl_ext.pth`` imports: one import finder that waits for s3prl, nothing else.

Python runs the ``.pth`` file at each start, so this module imports only what the interpreter has loaded already. The finder
acts once, when s3prl is first imported, or when torchaudio is imported by the script ``run_downstream.py`` (which needs
torchaudio before s3prl). Other programs never meet the plug-in. ``S3PRL_EXT_AUTOLOAD=0`` switches it off.

From Python 3.18 on ``import`` lines in ``.pth`` files are ignored; a ``s3prl_ext.start`` file then takes its place (PEP 829).
"""

import os
import sys

SWITCH = "S3PRL_EXT_AUTOLOAD"


def is_run_downstream() -> bool:
    """Tell whether this process runs s3prl's training command, as a script or with ``-m``."""
    program = (getattr(sys, "argv", None) or [""])[0]
    return program.endswith(("run_downstream.py", "run_downstream"))


class FirstImport:
    """Import finder that installs the plug-in right before s3prl is first imported, then removes itself."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "s3prl" and not (name == "torchaudio" and is_run_downstream()):
            return None
        withdraw()
        from importlib.util import find_spec

        from s3prl_ext import plugin

        plugin.install()
        # The running import goes through sys.meta_path as it was, so the spec with our hooks must be returned from here.
        return find_spec(name)


def register() -> None:
    """Put the finder in place; called by ``s3prl_ext.pth`` at the start of Python."""
    if os.environ.get(SWITCH) != "0" and FirstImport not in sys.meta_path:
        sys.meta_path.insert(0, FirstImport)


def withdraw() -> None:
    """Take the finder back, so that a later import of s3prl does not install the plug-in."""
    if FirstImport in sys.meta_path:
        sys.meta_path.remove(FirstImport)
