"""Files, names and values that were made to do harm.

Nothing in them runs, nothing is written elsewhere, and all of them end.

What s3prl does by design is left out: ``-o`` is Python, and a line of ``wav.scp`` that ends in ``|`` is a shell
command.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from reliability.commands import whole
from reliability.shared import KS, Figure, Place, finish, sentence_problem
from s3prl_ext.child_tuning import delta
from s3prl_ext.corpora import archives
from s3prl_ext.errors import DataError, UsageError

TRIALS = 1  # more repeat the same
SECONDS = 60.0  # a limit for what could go on for ever
NO_VARIABLES: dict[str, str] = {}
LOADERS = ("hubert", "wav2vec2", "wavlm", "beats", "apc", "distiller", "mockingjay", "tera", "audio_albert", "cpc")


class Trap:
    """A folder with what a stranger may send, and a file that appears if anything of it runs or escapes."""

    def __init__(self, place: Place) -> None:
        self.place, self.folder, self.fired = place, place.folder, place.folder / "FIRED"
        self.run = whole(place, "child")[0]
        self.bad: list[str] = []
        self.number = 0
        self.code = f"__import__('os').system('touch {self.fired}')"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        """Be pickled as a command of the shell."""
        return os.system, (f"touch {self.fired}",)

    def command(self, what: str, flags: list[Any], variables: dict[str, str] = NO_VARIABLES) -> None:
        """Run a command that meets a hostile file."""
        command = self.place.start(flags, self.folder / f"{self.number}.log", variables=variables)
        self.judge(what, sentence_problem(command, finish(command, SECONDS)))

    def judge(self, what: str, problem: str = "") -> None:
        """Count a case, and say what went wrong."""
        self.number += 1
        if self.fired.exists():
            problem = "RAN OR ESCAPED"
            self.fired.unlink()
        if problem:
            self.bad.append(what)
            print(f"{what}: {problem}", flush=True)

    def train(self, *options: Any) -> list[Any]:
        """Return a training with other options."""
        return ["run", "-m", "train", *options, "-p", self.folder / f"run-{self.number}"]

    def copy(self, source: Path) -> Path:
        """Copy a folder."""
        return shutil.copytree(source, self.folder / f"copy-{self.number}")

    def yaml(self, content: str) -> Path:
        """Write a YAML file."""
        path = self.folder / f"{self.number}.yaml"
        path.write_text(content)
        return path


def measure(place: Place) -> Figure:
    """Try everything once; the goal is 0 that run, escape, hang or end without a sentence."""
    trap = Trap(place)
    for cases in (pickles, tags, evaluated_text, endless, paths, packed):
        cases(trap)
    return Figure(f"{trap.number} hostile inputs, {len(trap.bad)} ran, escaped, hung or had no sentence", len(trap.bad))


def pickles(trap: Trap) -> None:
    """Put code into pickles, wherever one is read."""
    evil = trap.folder / "evil.ckpt"
    torch.save({"Downstream": trap, "Step": 1, "Args": Namespace(), "Config": {}}, evil)
    model = ["-u", "hf_hubert_custom", "-k", trap.place.hubert]
    trap.command("pickle, run -e", ["run", "-m", "evaluate", "-e", evil])
    trap.command("pickle, run -i", trap.train(*model, *KS, "-i", evil))
    trap.command("pickle, export", ["export", "--delta", evil, "--out", trap.folder / "exported"])
    for name in LOADERS:
        trap.command(f"pickle, {name}", trap.train("-u", f"{name}_local", "-k", evil, *KS))
    folder = trap.copy(trap.place.hubert)
    (folder / "model.safetensors").unlink()
    torch.save({"a": trap}, folder / "pytorch_model.bin")
    trap.command("pickle, .bin of a model", trap.train("-u", "hf_hubert_custom", "-k", folder, *KS))
    run = trap.copy(trap.run)
    for path in (*run.glob("*.ckpt"), *run.glob("*.safetensors")):
        path.unlink()
    torch.save({"key": trap}, run / "fisher.partial")
    trap.command("pickle, fisher.partial", [*trap.place.train(run), "-a"])


def tags(trap: Trap) -> None:
    """Ask YAML to call something."""
    tag = f"!!python/object/apply:os.system ['touch {trap.fired}']"
    trap.command("tag, task", trap.train("-u", "fbank", *KS[:3], trap.yaml(f"runner: {tag}\n")))
    merge = trap.yaml(f"target: {tag}\nsource: {{model: x}}\n")
    trap.command("tag, merge", trap.train("-u", "merged_attention", "-g", merge, *KS))
    trap.command("tag, -g", trap.train("-u", "merged_attention", "-g", f"{trap.place.merge},,lambda={tag}", *KS))


def evaluated_text(trap: Trap) -> None:
    """Put code where s3prl evaluates names of classes."""
    states = torch.load(trap.run / "states-6.ckpt", weights_only=False)
    config = json.loads(json.dumps(states["Config"]))
    config["downstream_expert"]["modelrc"]["select"] = trap.code
    trap.command("evaluated, task", trap.train("-u", "fbank", *KS[:3], trap.yaml(yaml.safe_dump(config))))
    for name, content in (("config", {"Config": config}), ("place", {"Args": Namespace(**vars(states["Args"]))})):
        folder = trap.folder / f"{name} a\\x41b"  # also a name that -o would change
        folder.mkdir()
        if name == "place":
            content["Args"].expdir = str(trap.fired)
        torch.save(states | content, folder / "states-6.ckpt")
        trap.command(f"evaluated, {name} in a checkpoint", ["run", "-m", "evaluate", "-e", folder / "states-6.ckpt"])
    found = delta.load(trap.run / "delta.safetensors")
    delta.save(replace(found, info={**found.info, "config": config}), trap.folder / "delta.safetensors")
    trap.command("evaluated, delta", ["run", "-m", "evaluate", "-e", trap.folder / "delta.safetensors"])


def endless(trap: Trap) -> None:
    """Give what never ends: variables, aliases, nesting, a delta that inflates to gigabytes."""
    itself = {"SPEECH_COMMANDS": "${SPEECH_COMMANDS}/sub"}
    trap.command("a variable in itself", trap.train("-u", "fbank", *KS), itself)
    each = {"SPEECH_COMMANDS": "${OTHER}", "OTHER": "${SPEECH_COMMANDS}"}
    trap.command("two variables in each other", trap.train("-u", "fbank", *KS), each)
    rows = [f"{b}: &{b} [{','.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    bomb = trap.yaml("\n".join(["a: &a [x,x,x,x,x,x,x,x,x]", *rows, ""]))
    trap.command("aliases of aliases", trap.train("-u", "fbank", *KS[:3], bomb))
    trap.command("nesting, task", trap.train("-u", "fbank", *KS[:3], trap.yaml("[" * 100_000)))
    folder = trap.copy(trap.place.hubert)
    (folder / "config.json").write_text("[" * 100_000)
    trap.command("nesting, model", trap.train("-u", "hf_hubert_custom", "-k", folder, *KS))
    found = delta.load(trap.run / "delta.safetensors")
    gaps = torch.frombuffer(bytearray(zlib.compress(bytes(1 << 29), 9)), dtype=torch.uint8)
    tensors = {"gaps": gaps, "bits": delta._pack_bits(found)}
    numbers = json.dumps([[name, found.sizes[name], index.numel()] for name, index in found.indices.items()])
    about = {"format": delta.FORMAT, "version": "2", "base_sha256": found.base_sha256, "tensors": numbers}
    about["info"] = json.dumps(dict(found.info), default=str)
    about["content_sha256"] = delta.content_sha256(tensors, about)
    path = trap.folder / "bomb.safetensors"
    save_file(tensors, path, metadata=about)
    out = trap.folder / "inflated"
    trap.command("a delta that inflates", ["apply", "--delta", path, "--model", trap.place.hubert, "--out", out])
    trap.judge("the delta that inflates", "applied" if out.exists() else "")


def paths(trap: Trap) -> None:
    """Name files elsewhere, and bring code with a model."""
    folder = trap.copy(trap.place.hubert)
    weights, outside = load_file(folder / "model.safetensors"), trap.folder / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    before = outside.read_bytes()
    places = {"metadata": {}, "weight_map": dict.fromkeys(weights, f"../{outside.name}")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))
    known = trap.run / "delta.safetensors"
    trap.command("weights elsewhere", ["apply", "--delta", known, "--model", folder, "--out", trap.folder / "applied"])
    trap.judge("the weights elsewhere", "" if outside.read_bytes() == before else "changed")
    trap.command("a task elsewhere", trap.train("-u", "fbank", "-d", "../speech_commands", "-c", "ks/mini"))
    folder = trap.copy(trap.place.hubert)
    config = json.loads((folder / "config.json").read_text())
    kinds = ("AutoConfig", "AutoModel", "AutoFeatureExtractor")
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {kind: "evil.Evil" for kind in kinds}}))
    (folder / "evil.py").write_text(f"{trap.code}\nclass Evil: pass\n")
    options = "config.runner.total_steps=1,,config.runner.evaluate_ratio=0.1"
    trap.command("a model with code", trap.train("-u", "hf_hubert_custom", "-k", folder, *KS, "-o", options))


def packed(trap: Trap) -> None:
    """Pack entries that lead out of a folder, links and devices."""
    kinds = {"symlink": tarfile.SYMTYPE, "link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "up": None, "root": None}
    for name, kind in kinds.items():
        path = trap.folder / f"{name}.tar.gz"
        entry = tarfile.TarInfo({"up": f"../{trap.fired.name}", "root": str(trap.fired)}.get(name, "C/x"))
        entry.type, entry.linkname = kind or tarfile.REGTYPE, "/etc/passwd"
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(entry, io.BytesIO())
        _unpack(trap, path)
    for name in (f"../{trap.fired.name}", f"..\\{trap.fired.name}"):
        path = trap.folder / f"{len(name)}-{trap.number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "x")
        _unpack(trap, path)


def _unpack(trap: Trap, path: Path) -> None:
    try:
        archives.extract(path, trap.folder / f"unpacked-{trap.number}")
        trap.judge(path.name, "unpacked")
    except (DataError, UsageError):
        trap.judge(path.name)
