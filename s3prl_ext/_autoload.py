"""What the start-up hook ``s3prl_ext.pth`` imports: one import finder that waits for s3prl, nothing else.

Python runs the ``.pth`` file at each start, so this module imports only what the interpreter has loaded already.
The finder acts once: when s3prl, or our Runner, is first imported, or when the script ``run_downstream.py`` imports
torchaudio, which it does before s3prl. Other programs never meet the plug-in. ``S3PRL_EXT_AUTOLOAD=0`` switches it off.

Python 3.18 and later ignore ``import`` lines in ``.pth`` files: there a file ``s3prl_ext.start`` has to take its place
(PEP 829).
"""

import os
import sys

SWITCH = "S3PRL_EXT_AUTOLOAD"

# Our Runner imports s3prl's, so where it comes first, the hooks around both have to be there before.
TRIGGERS = ("s3prl", "s3prl_ext.training.runner")


def is_run_downstream() -> bool:
    """Tell whether this process runs s3prl's training command, as a script or with ``-m``."""
    program = (getattr(sys, "argv", None) or [""])[0]
    return program.endswith(("run_downstream.py", "run_downstream"))


class FirstImport:
    """Import finder that installs the plug-in right before s3prl is first imported, then removes itself."""

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        if name not in TRIGGERS and not (name == "torchaudio" and is_run_downstream()):
            return None
        withdraw()
        from importlib.util import find_spec

        from s3prl_ext import plugin

        plugin.install()
        # The running import has passed the place where our hooks now are, so it gets its spec from here.
        return find_spec(name)


def register() -> None:
    """Put the finder in place; called by ``s3prl_ext.pth`` at the start of Python."""
    if os.environ.get(SWITCH) != "0" and FirstImport not in sys.meta_path:
        sys.meta_path.insert(0, FirstImport)


def withdraw() -> None:
    """Take the finder back, so that a later import of s3prl does not install the plug-in."""
    if FirstImport in sys.meta_path:
        sys.meta_path.remove(FirstImport)
