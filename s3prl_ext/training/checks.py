"""Checks of an experiment before it is built: its folder, its checkpoint, its upstream, its flags."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from s3prl_ext import locks, tasks
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.training import checkpoint, tuned_upstream
from s3prl_ext.training.early_stop import candidates
from s3prl_ext.training.methods import resolve_tuning
from s3prl_ext.training.parameter_groups import RatesConfig
from s3prl_ext.training.tuning_config import TuningConfig

logger = logging.getLogger(__name__)

# what is written before anything is trained: s3prl's copies of the settings and of the file of -g, by time
SETTINGS_FILES = r".+_\d{4}(-\d\d){5}\.\w+|events\.out\.tfevents\..*"
RESULT_FILES = (
    "*.ckpt", "result*.json", "log.log", "events.out.tfevents.*", "masks.safetensors", "fisher.partial", "race",
    "race.png", "delta.safetensors", "lambda.json", "lambda.png",
)  # fmt: skip  # what a run leaves in its folder, with the files of its task
FEATURE_FLAGS = ("-s", "--upstream_feature_selection", "-l", "--upstream_layer_selection")


def check_folder(args: Namespace) -> None:
    """Raise UsageError where a new training run would overwrite checkpoints and ``args.overwrite`` is not set."""
    if args.mode == "train" and not args.past_exp and not getattr(args, "overwrite", False):
        checkpoint.refuse_overwriting(args.expdir)


def clear_folder(args: Namespace) -> None:
    """Remove checkpoints and results of the experiment that ``args.overwrite`` replaces; call it once all is built."""
    if args.past_exp or not getattr(args, "overwrite", False):
        return
    for pattern in (*RESULT_FILES, *tasks.result_files()):
        for old in Path(args.expdir).glob(pattern):
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def remove_parts(expdir: str | Path) -> None:
    """Remove temporary files that a killed run left in its folder; they hold parts of what has no name yet."""
    locks.remove_unfinished(expdir, below=("race", "race/*"))


@contextmanager
def no_empty_folder(expdir: str | Path, active: bool = True) -> Iterator[None]:
    """Where the body fails, remove the experiment's folder if nothing was trained in it; `active` on the first rank."""
    try:
        yield
    except Exception:
        if active:
            remove_empty_folder(expdir)
        raise


def remove_empty_folder(expdir: str | Path) -> None:
    """Remove the folder of an experiment that did not come to be: it holds only s3prl's copies of its settings."""
    written = list(Path(expdir).iterdir())
    folders = [path for path in written if path.is_dir() and not any(part.is_file() for part in path.rglob("*"))]
    kept = {*locks.FILES, *tasks.built_files()}
    files = [path for path in written if re.fullmatch(SETTINGS_FILES, path.name) or path.name in kept]
    if files and len(files) + len(folders) == len(written):
        for path in files:
            path.unlink()
        for path in folders:
            shutil.rmtree(path)
        Path(expdir).rmdir()


def check_origin(states: Mapping[str, Any], args: Namespace) -> None:
    """Raise DataError where a checkpoint (``-i``) was made with another upstream or task than `args` name."""
    stored = states.get("Args")
    for name, flag in (("upstream", "-u"), ("downstream", "-d")):
        before, now = getattr(stored, name, None), getattr(args, name)
        if before is not None and before != now:
            raise DataError(
                f"{args.init_ckpt} was trained with {flag} {before}, not with {flag} {now}; "
                f"repeat {flag} {before} or choose another checkpoint."
            )


def check_tuning(
    states: Mapping[str, Any],
    section: Mapping[str, Any] | None,
    tunings: Sequence[TuningConfig | None],
    args: Namespace,
) -> None:
    """Raise UsageError where a checkpoint was trained under another section ``tuning`` than the present.

    Learning rates may change: they are the optimizer's, and a resumed run takes them from the checkpoint. A checkpoint
    given with ``-i`` alone is compared where it holds a small part of the upstream.

    Args:
        states: the checkpoint; empty for none.
        section: the present section as it is written, or None.
        tunings: what it says: one configuration, or those of the candidates of a race.
        args: the arguments of ``run_downstream.py``.
    """
    resumed = args.past_exp and checkpoint.EXTENSION_KEY in states
    if not {tuned_upstream.KEY, checkpoint.DELTA_KEY} & set(states) and not resumed:
        return
    before = states["Config"].get("tuning")
    name = states[checkpoint.EXTENSION_KEY].get("candidate")
    made = candidates(before) if before else []
    stored: list[TuningConfig | None] = [None] if not made else []
    stored += [resolve_tuning(states["Config"], c.tuning) for c in made if name is None or c.name == name]
    if list(map(_without_rates, stored)) != list(map(_without_rates, tunings)):
        chosen = next((c.tuning for c in made if c.name == name), before) if name else before
        raise UsageError(
            f"{args.init_ckpt} holds an upstream tuned with {_shown(chosen)}, but now it is {_shown(section)}; go on with "
            "the same section, or start a new experiment."
        )
    if stored != list(tunings):
        logger.warning(
            "a resumed run keeps the learning rates of its checkpoint, not those of the present section tuning"
        )


def check_data(states: Mapping[str, Any], data: Mapping[str, Any] | None, args: Namespace) -> None:
    """Raise DataError where a run would go on with another corpus than that of its checkpoint.

    Args:
        states: the checkpoint; empty for none.
        data: :func:`s3prl_ext.training.corpus_hash.corpus_hash` of the present corpus.
        args: the arguments of ``run_downstream.py``.
    """
    before = states.get(checkpoint.EXTENSION_KEY, {}).get("data")
    if args.mode != "train" or not args.past_exp or not before or (data and before["sha256"] == data["sha256"]):
        return
    now = f"{data['files']} files of {data['bytes']:,} bytes" if data else "none"
    raise DataError(
        f"{args.init_ckpt} was trained on other data: {before['files']} files of {before['bytes']:,} bytes, and now {now} "
        f"({before['covers']}); put the corpus back, or start a new experiment, with -i to begin at these weights."
    )


def check_head_features(states: Mapping[str, Any], args: Namespace) -> None:
    """Compare the features that a head given with ``-i`` was trained on with those that it would read now.

    Features of another layer may have the same width, so nothing else would notice.

    Args:
        states: the checkpoint or delta; empty for none.
        args: the arguments of ``run_downstream.py``, their features resolved.

    Raises:
        UsageError: they differ and the head would be scored; in a training, which goes on from it, they are logged.
    """
    stored = states.get(checkpoint.FEATURES_KEY) or vars(states.get("Args") or Namespace())
    if args.past_exp or "Downstream" not in states or checkpoint.FEATURES[0] not in stored:
        return
    before, now = (_features(values) for values in (stored, vars(args)))
    if before == now:
        return
    sentence = f"the head in {args.init_ckpt} was trained on {before}, but would read {now}"
    if args.mode != "train":
        raise UsageError(f"{sentence}: give the -s and -l that it was trained with.")
    logger.warning("%s; the training goes on from it all the same", sentence)


def _features(args: Mapping[str, Any]) -> str:
    """Return in words what a task reads; the last of all hidden states is the last hidden state."""
    selection, layer, normalized = (args.get(name) for name in checkpoint.FEATURES)
    if selection == "hidden_states" and layer is not None and int(layer) == -1:
        selection, layer = "last_hidden_state", None
    return f"{selection}" + (f", layer {layer}" if layer is not None else "") + (", normalised" if normalized else "")


def check_optimizer(states: Mapping[str, Any], config: Mapping[str, Any], args: Namespace) -> None:
    """Raise UsageError where a run would go on with the state of another optimizer than that of its task file."""
    if args.mode != "train" or not args.past_exp or not states.get("Optimizer"):
        return
    keys = ("name", "torch_optim_name")
    before, now = (tuple(c["optimizer"].get(key) for key in keys) for c in (states["Config"], config))
    if before != now:
        names = [" ".join(filter(None, pair)) for pair in (before, now)]
        raise UsageError(
            f"{args.init_ckpt} holds the state of the optimizer {names[0]}, but now it is {names[1]}; go on with the same "
            "one, or start a new experiment."
        )


def _without_rates(tuning: TuningConfig | None) -> TuningConfig | None:
    if tuning is None:
        return None
    return replace(tuning, rates=RatesConfig(train_layers=tuning.rates.train_layers))


def _shown(section: Mapping[str, Any] | None) -> str:
    """Return a section ``tuning`` as it stands in a task file, on one line."""
    if section is None:
        return "(no section tuning)"
    return yaml.safe_dump(dict(section), default_flow_style=True, sort_keys=False, width=10**6).strip()


def check_processes(states: Mapping[str, Any], path: str | Path, processes: int) -> None:
    """Raise UsageError where a checkpoint is resumed with another number of processes than it was trained with.

    Args:
        states: the checkpoint.
        path: its file.
        processes: how many there are now; 0 where torchrun did not start this one.
    """
    before = states.get("WorldSize", 0)
    if before == processes:
        return
    command = f"torchrun --nproc_per_node {before} -m s3prl_ext.run_downstream" if before else "s3prl-ext run"
    counts = [f"{number or 1} process{'es' if number > 1 else ''}{'' if number else ' without torchrun'}"
              for number in (before, processes)]  # fmt: skip
    raise UsageError(
        f"{path} was trained by {counts[0]}, and now there {'are' if processes > 1 else 'is'} {counts[1]}: resume it with "
        f"{command}, or start a new experiment."
    )


def features_given(args: Namespace) -> bool:
    """Return whether the user chose the features with ``-s`` or ``-l``."""
    on_command_line = any(a == f or a.startswith(f + "=") for a in sys.argv[1:] for f in FEATURE_FLAGS)
    return (
        on_command_line
        or args.upstream_feature_selection != "hidden_states"
        or args.upstream_layer_selection is not None
    )


def known_tasks() -> list[str]:
    """Return the names for ``-d``: every folder of s3prl's downstream package that has an expert."""
    import s3prl.downstream

    return sorted(path.parent.name for folder in s3prl.downstream.__path__ for path in Path(folder).glob("*/expert.py"))
