"""The build step of s3prl_ext: the start-up hook and the shipped configuration files. The rest is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
HOOK = "s3prl_ext.pth"
SHIPPED = ("upstream_configs", "downstream_configs", "recipes")


class BuildWithHook(build_py):
    """Put the start-up hook next to the package, and the repository's configuration folders into it.

    An editable install takes only the hook: it reads the folders where they are.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            # setuptools points install_lib at the contents of the editable wheel
            self.copy_file(str(ROOT / HOOK), str(Path(self.distribution.get_command_obj("install").install_lib, HOOK)))
            return
        for folder in SHIPPED:
            shutil.rmtree(Path(self.build_lib, "s3prl_ext", folder), ignore_errors=True)
        for source, target in self._extra_files():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(source, target)

    def _extra_files(self) -> list[tuple[str, str]]:
        """List the extra files as pairs (path from the repository's root, path in the build folder)."""
        files = [
            (str(path.relative_to(ROOT)), str(Path(self.build_lib, "s3prl_ext", path.relative_to(ROOT))))
            for folder in SHIPPED
            for path in sorted((ROOT / folder).rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        ]
        return [(HOOK, str(Path(self.build_lib, HOOK))), *files]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(source for source, _ in self._extra_files())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        extra = [] if self.editable_mode else [target for _, target in self._extra_files()]
        return [*super().get_outputs(include_bytecode), *extra]


setup(cmdclass={"build_py": BuildWithHook})
