"""The command ``s3prl-ext``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from s3prl_ext import __version__
from s3prl_ext.commands import flags
from s3prl_ext.errors import as_command, unknown_name

# command -> (module, function, what it does)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("s3prl_ext.run_downstream", "main", "train or evaluate a SUPERB task (the flags of run_downstream.py)"),
    "doctor": ("s3prl_ext.doctor", "main", "check this installation: versions, shims, upstreams, tasks, devices"),
    "prepare": (
        "s3prl_ext.commands.prepare",
        "main",
        "build a corpus, such as a miniature SUPERB: prepare mini_superb",
    ),
    "methods": ("s3prl_ext.commands.methods", "main", "list tuning methods: trainable parameters and paper"),
    "layers": ("s3prl_ext.commands.layers", "main", "compare the layers of two models and choose the ones to merge"),
    "study": (
        "s3prl_ext.commands.study",
        "main",
        "run many settings, here or on a cluster; choose on dev, report on test",
    ),
    "sweep": ("s3prl_ext.commands.sweep", "main", "score many merges in one process: lambda grids, layers, noise"),
    "predict": ("s3prl_ext.commands.predict", "main", "label, transcribe or diarize your own recordings"),
    "report": (
        "s3prl_ext.commands.report",
        "main",
        "result tables (next to the papers' numbers), plots, one HTML page",
    ),
    "compare": ("s3prl_ext.commands.compare", "main", "compare the transcripts of two models, utterance by utterance"),
    "apply": ("s3prl_ext.commands.apply", "main", "apply a delta to its base model"),
    "revert": ("s3prl_ext.commands.apply", "revert_main", "turn a tuned model into its base with the delta"),
    "export": ("s3prl_ext.commands.export", "main", "write a tuned task as a plain model with its head and a card"),
    "push": ("s3prl_ext.commands.push", "main", "upload what export or merge wrote to the Hugging Face hub"),
    "merge": ("s3prl_ext.commands.merge", "main", "write a merged model as a plain checkpoint with a model card"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 data, 2 usage.

    Args:
        argv: command and flags; None takes them from the command line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"s3prl-ext {__version__}")
        return 0
    with as_command():
        if argv[0] not in COMMANDS:
            raise unknown_name("command", argv[0], COMMANDS)
        flags.check(argv[0], argv[1:])
        module, function, _ = COMMANDS[argv[0]]
        return getattr(importlib.import_module(module), function)(argv[1:]) or 0


def _usage() -> str:
    rows = "\n".join(f"  {name:10s}{text}" for name, (_, _, text) in COMMANDS.items())
    return (
        "usage: s3prl-ext COMMAND [FLAGS]\n\n"
        "Merged upstreams, child-tuning and SUPERB task files for s3prl.\n\n"
        f"commands:\n{rows}\n\n"
        "  s3prl-ext COMMAND --help   the flags of a command\n"
        "  s3prl-ext --version        the version\n\n"
        "example:\n"
        "  s3prl-ext prepare mini_superb --out mini\n"
        "  . mini/env.sh\n"
        "  s3prl-ext run -m train -u fbank_no_cmvn -d speech_commands -c ks/mini -p exp/ks\n"
    )


if __name__ == "__main__":
    sys.exit(main())
