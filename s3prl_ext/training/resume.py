"""Checks that a checkpoint and the command or task file that resumes it agree, made before anything is built.

s3prl takes arguments and task file from the checkpoint and ignores what the command line says apart from ``-o``:
another upstream, corpus, seed or task file would be dropped without a word. It also writes into the folder where a
checkpoint was made, see :func:`keep_in_its_folder`.
"""

from __future__ import annotations

import functools
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from s3prl_ext.child_tuning import delta
from s3prl_ext.configs import Record, Section, expand_variables, with_numbers
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.scored_runs import has_effect
from s3prl_ext.run_folder import CHECKPOINT_SUFFIX, RunFolder, step_of
from s3prl_ext.tasks import task_of
from s3prl_ext.tasks.record import LABELS
from s3prl_ext.training.batching.corpus_hash import SPLITS_RULE, CorpusHash
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.methods import resolve_tuning
from s3prl_ext.training.parameter_groups import RatesConfig
from s3prl_ext.training.racing.candidates import candidates_of
from s3prl_ext.training.results import result_file
from s3prl_ext.training.results.run_settings import COMPLETED
from s3prl_ext.training.run_spec import FLAGS, TASK_ARGUMENTS, UPSTREAM_ARGUMENTS, RunSpec, arguments_in_override
from s3prl_ext.training.task_file import translate
from s3prl_ext.training.tuning_config import TuningConfig

logger = logging.getLogger(__name__)

# What -o does not change on resume: flags but those of a model that has moved (-k, -g), and sections of the task file.
_FIXED = {flag for name, flag in FLAGS.items() if name not in UPSTREAM_ARGUMENTS[1:]}
_FIXED_SECTIONS = ("optimizer.", "scheduler", "tuning")
_SHOWN = 4  # differences that a message names
_MISSING = "(nothing)"
SPEAKERS = "speakers"  # of training, whose outputs speaker verification does not use when it is scored
_folders: dict[Path, str] = {}  # checkpoint -> the folder that its experiment is in now


# -- the command -----------------------------------------------------------------------------------------------------


def check_command(
    ckpt: Checkpoint,
    flags: Namespace,
    asked: Section | None,
    stored: Section | None,
    overridden: Collection[str],
) -> None:
    """Raise UsageError where a command contradicts the checkpoint that it resumes.

    Args:
        ckpt: the checkpoint.
        flags: the command line; what is None or False was not given.
        asked: the task file that the command names, with its ``-o``; None where it names none.
        stored: the task file of the checkpoint with the same ``-o``.
        overridden: keys of ``-o``, such as ``args.upstream``: these are changed on purpose.
    """
    known = {name: value for name, value in vars(flags).items()
             if name in ckpt.arguments and f"args.{name}" not in overridden}  # fmt: skip
    differences = list(RunSpec.of(ckpt.args).differences(RunSpec.of(known)))
    if asked is not None and stored is not None:
        differences += _changes(stored, asked)
    if not differences:
        return
    names = [what for what, _, _ in differences]
    fixed = any(name in _FIXED or name.startswith(_FIXED_SECTIONS) for name in names)
    change = "" if fixed else "change a setting on purpose with -o (config.KEY=VALUE, args.NAME=VALUE), "
    begin = ", with -i to begin at these weights" if all(name.startswith("optimizer.") for name in names) else ""
    raise UsageError(
        f"{ckpt.path} was trained with different settings ({_named(differences)}): repeat the first command, {change}"
        f"or start a new experiment with another -p{begin}."
    )


def _named(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """Return the first few differences in words."""
    named = "; ".join(f"{what}: {before} in the checkpoint, {now} here" for what, before, now in differences[:_SHOWN])
    return named + (f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else "")


def _plain(config: Section) -> Record:
    return translate(with_numbers(expand_variables(dict(config)), ("optimizer", "scheduler")))


def _changes(stored: Section, now: Section) -> list[tuple[str, Any, Any]]:
    """Return the differences of two task files without what the task itself has added to the stored one."""
    found = _between(_plain(stored), _plain(now))
    return [row for row in found if not (row[0].startswith(COMPLETED) and row[2] in (_MISSING, None))]


def _between(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Return place and both values of everything that differs between two nested task files."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [(where, before, now)]
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        place = f"{where}.{key}" if where else str(key)
        found += _between(before.get(key, _MISSING), now.get(key, _MISSING), place)
    return found


def check_processes(ckpt: Checkpoint, processes: int) -> None:
    """Raise UsageError where a checkpoint is resumed with another number of processes than it was trained with.

    Args:
        ckpt: the checkpoint.
        processes: how many there are now; 0 where torchrun did not start this one.
    """
    before = ckpt.processes
    if before == processes:
        return
    command = f"torchrun --nproc_per_node {before} -m s3prl_ext.run_downstream" if before else "s3prl-ext run"
    counts = [f"{number or 1} process{'es' if number > 1 else ''}{'' if number else ' without torchrun'}"
              for number in (before, processes)]  # fmt: skip
    raise UsageError(
        f"{ckpt.path} was trained by {counts[0]}, and now there {'are' if processes > 1 else 'is'} {counts[1]}: resume "
        f"it with {command}, or start a new experiment."
    )


def keep_in_its_folder(path: Path) -> None:
    """From now on let ``torch.load`` return a checkpoint as if it had been made in the folder where it is.

    s3prl makes the folder that a checkpoint was made in before it looks at anything else, which fails where it cannot
    be made, such as ``/scratch/alice/exp`` of another machine, and otherwise leaves an empty folder there.
    """
    _folders[path.resolve()] = str(path.parent)
    if not hasattr(torch.load, "relocates"):
        torch.load = _relocating(torch.load)


def _relocating(load: Any) -> Any:
    @functools.wraps(load)
    def load_here(file: Any, *args: Any, **options: Any) -> Any:
        states = load(file, *args, **options)
        folder = _folders.get(Path(file).resolve()) if isinstance(file, (str, os.PathLike)) else None
        if folder is not None and isinstance(states, dict) and hasattr(states.get("Args"), "expdir"):
            states["Args"].expdir = folder
        return states

    load_here.relocates = True  # type: ignore[attr-defined]
    return load_here


def set_aside_later(folder: RunFolder, step: int) -> None:
    """Rename checkpoints, delta and results of a later step than the one at which a run goes on, with a warning.

    They are of the run that was left for an earlier checkpoint; what goes on may never write its own over them, nor
    take them for its own: with several numbered checkpoints kept, the newest would be one of them.
    """
    found: list[tuple[Path, int | None]] = [(path, step_of(path)) for path in folder.numbered()]
    found += [(path, _step_of(path)) for path in folder.best()]
    found += [(folder.delta, _step_of(folder.delta))] if folder.delta.is_file() else []
    found += [(path, result_file.step_of(path)) for path in (folder.result(), *folder.evaluations(), *folder.stops())]
    for path, of in found:
        if of is not None and of > step:
            kept = folder.set_aside(path, of)
            logger.warning(
                "%s is of step %d, but the run goes on from step %d: it is kept as %s and no longer counts as one of "
                "this run", path, of, step, kept.name,
            )  # fmt: skip


def _step_of(path: Path) -> int | None:
    """Return the step of a checkpoint or delta; None where it cannot be read."""
    try:
        if path.suffix == CHECKPOINT_SUFFIX:
            return Checkpoint.read(path, mmap=True).step
        return delta.load(path).info.get("step")
    except DataError:
        return None


# -- the experiment --------------------------------------------------------------------------------------------------


def check_origin(ckpt: Checkpoint, args: Namespace) -> None:
    """Raise DataError where a checkpoint (``-i``) was made with another upstream or task than `args` name."""
    stored = RunSpec.of(ckpt.args)
    for name, flag in (("upstream", "-u"), ("downstream", "-d")):
        before, now = getattr(stored, name), getattr(args, name)
        if before is not None and before != now:
            raise DataError(
                f"{ckpt.path} was trained with {flag} {before}, not with {flag} {now}; "
                f"repeat {flag} {before} or choose another checkpoint."
            )


def check_tuning(
    ckpt: Checkpoint,
    section: Section | None,
    config: Section,
    tunings: Sequence[TuningConfig | None],
    args: Namespace,
) -> None:
    """Raise UsageError where a checkpoint was trained under another section ``tuning`` than the present.

    A training that is resumed has the learning rates of its checkpoint, so that others would be recorded and not used.
    A checkpoint given with ``-i`` is compared where it holds a small part of the upstream, without the rates. What a
    section leaves to others, such as the limit of the gradients in a Fisher pass, is not compared: the mask is chosen.

    Args:
        ckpt: the checkpoint; empty for none.
        section: the present section as it is written, or None.
        config: the present task file, whose other sections give what a section leaves to them.
        tunings: what it says: one configuration, or those of the candidates of a race.
        args: the arguments of ``run_downstream.py``.
    """
    if ckpt.changes is None and not (args.past_exp and ckpt.is_ours):
        return
    before = (ckpt.config or {}).get("tuning")
    name = ckpt.extension.candidate
    made = candidates_of(before) if before else []
    stored: list[TuningConfig | None] = [None] if not made else []
    stored += [resolve_tuning(config, c.tuning) for c in made if name is None or c.name == name]
    if list(map(_without_rates, stored)) != list(map(_without_rates, tunings)):
        chosen = next((c.tuning for c in made if c.name == name), before) if name else before
        remedy = (
            "resume with the same section, or start a new experiment"
            if args.past_exp
            else ("give the same section, or begin without -i")
        )
        raise UsageError(
            f"{ckpt.path} was trained with tuning {_shown(chosen)}, the task file says {_shown(section)}: {remedy}."
        )
    if stored != list(tunings) and args.mode == "train" and args.past_exp:
        raise UsageError(
            f"{ckpt.path} holds the state of an optimizer with other learning rates (tuning {_shown(before)} in the "
            f"checkpoint, {_shown(section)} here): resume with the same section tuning, or start a new experiment with "
            f"-i {ckpt.path}, which begins at these weights."
        )


def check_data(ckpt: Checkpoint, data: CorpusHash | None, args: Namespace) -> None:
    """Raise DataError where a run would be resumed with another corpus than that of its checkpoint.

    Args:
        ckpt: the checkpoint; empty for none.
        data: of the present corpus.
        args: the arguments of ``run_downstream.py``.
    """
    before = ckpt.extension.data
    if args.mode != "train" or not args.past_exp or not before or (data and before["sha256"] == data["sha256"]):
        return
    now = f"{data['files']} files of {data['bytes']:,} bytes" if data else "none"
    raise DataError(
        f"{ckpt.path} was trained on other data: {before['files']} files of {before['bytes']:,} bytes, and now {now} "
        f"({before['covers']}); restore the corpus, or start a new experiment, with -i to begin at these weights."
    )


def check_splits(ckpt: Checkpoint, splits: Callable[[], str | None], args: Namespace) -> None:
    """Compare the lists that divide the corpus with those of a checkpoint's training, by their hash.

    Evaluations of another corpus are legitimate, so there a difference is logged as a warning. What an earlier version
    has written, by another rule, is not compared.

    Args:
        ckpt: the checkpoint or delta; empty for none.
        splits: returns the hash of the present lists; None where the task has none.
        args: the arguments of ``run_downstream.py``.

    Raises:
        DataError: a training would go on with other lists.
    """
    training = args.mode == "train"
    data = ckpt.extension.data
    before = data.get("splits_sha256") if data else None
    if not before or ckpt.extension.splits_rule != SPLITS_RULE or (training and not args.past_exp):
        return
    now = splits()
    if now in (before, None):
        return
    if training:
        raise DataError(
            f"{ckpt.path} was trained with other lists of train, dev and test than its corpus has now; restore the "
            "lists, or start a new experiment, with -i to begin at these weights."
        )
    logger.warning(
        "%s was trained with other lists of train, dev and test than the corpus has now: unless this is another "
        "corpus, clips that it was trained on may be scored; restore the lists of its training", ckpt.path,
    )  # fmt: skip


def check_labels(
    ckpt: Checkpoint, stored: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]], args: Namespace
) -> None:
    """Check that the outputs of the head of a checkpoint stand for what the present corpus numbers alike.

    Args:
        ckpt: the checkpoint or delta; empty for none.
        stored: what its outputs stand for, in their order, by kind.
        now: the same of the present corpus.
        args: the arguments of ``run_downstream.py``.

    Raises:
        DataError: naming the first output that differs; where a new training begins with the head, it is logged.
    """
    if "Downstream" not in ckpt.weights:
        return
    for kind, before in stored.items():
        found = now.get(kind)
        if found is None or list(found) == list(before) or (kind == SPEAKERS and args.mode != "train"):
            continue
        first = next((i for i, both in enumerate(zip(before, found, strict=False)) if both[0] != both[1]),
                     min(len(before), len(found)))  # fmt: skip
        one, other = (repr(names[first]) if first < len(names) else "absent" for names in (before, found))
        sentence = (
            f"output {first} of the head in {ckpt.path} ({kind}) is {one}, but {other} by the corpus as it is now"
        )
        if args.mode != "train" or args.past_exp:
            raise DataError(
                f"{sentence}: restore the lists that it was trained with, from which the labels are numbered."
            )
        logger.warning("%s; training begins with it anyway", sentence)


def check_head_features(ckpt: Checkpoint, args: Namespace) -> None:
    """Compare the features that a head given with ``-i`` was trained on with those that it would read now.

    Features of another layer may have the same width, so nothing else would notice.

    Args:
        ckpt: the checkpoint or delta; empty for none.
        args: the arguments of ``run_downstream.py``, their features resolved.

    Raises:
        UsageError: they differ and the head would be scored; in a training, which starts from it, they are logged.
    """
    stored = ckpt.arguments
    if args.past_exp or "Downstream" not in ckpt.weights or "upstream_feature_selection" not in stored:
        return
    before, now = RunSpec.of(stored).features, RunSpec.of(args).features
    if before == now:
        return
    sentence = f"the head in {ckpt.path} was trained on {before}, but would read {now}"
    if args.mode != "train":
        raise UsageError(f"{sentence}: give the -s and -l that it was trained with.")
    logger.warning("%s; training continues from it anyway", sentence)


def check_optimizer(ckpt: Checkpoint, config: Section, args: Namespace) -> None:
    """Raise UsageError where a run would resume the state of another optimizer or schedule, or with other options.

    The state holds the options, learning rate included, so those of the task file would be recorded and not used.

    Args:
        ckpt: the checkpoint; empty for none.
        config: the present task file.
        args: the arguments of ``run_downstream.py``.
    """
    if args.mode != "train" or not args.past_exp or not ckpt.config:
        return
    if not (ckpt.optimizer or ckpt.extension.race_start):  # candidates of a race have states of their own
        return
    for section in ("optimizer", "scheduler"):
        before, now = (_plain({section: c.get(section) or {}})[section] for c in (ckpt.config, config))
        differences = _between(before, now, section)
        if differences:
            raise UsageError(
                f"{ckpt.path} holds the state of another {section} ({_named(differences)}): resume with the same "
                f"section {section}, or start a new experiment with -i {ckpt.path}, which begins at these weights."
            )


def check_trained(ckpt: Checkpoint, args: Namespace) -> None:
    """Raise UsageError where the start of a race would be scored: nothing of it is trained yet."""
    if args.mode != "train" and ckpt.extension.race_start is not None:
        raise UsageError(
            f"{ckpt.path} is the start of a race, of which nothing is trained: finish the race with -m train -e "
            f"{ckpt.path}, or name the checkpoint of a candidate, race/NAME/states-N.ckpt."
        )


def check_same_run(ckpt: Checkpoint, args: Namespace) -> None:
    """Raise UsageError where ``-o`` gives a resumed run another seed, variant or features than its weights have.

    Args:
        ckpt: the checkpoint; empty for none.
        args: the arguments of ``run_downstream.py``.
    """
    if not args.past_exp:
        return
    given = arguments_in_override(args)
    for name in ("seed", *TASK_ARGUMENTS[1:]):
        before, now = ckpt.arguments.get(name), getattr(args, name, None)
        asked = name == "seed" or name in given  # features are resolved when the models are built
        if name in ckpt.arguments and asked and before != now:
            raise UsageError(
                f"{ckpt.path} was trained with {name} {before}, and args.{name} is {now}: leave it out, or start a new "
                f"experiment with {FLAGS[name]}."
            )


def check_race(ckpt: Checkpoint, config: Section, args: Namespace) -> None:
    """Raise UsageError where the rest of a race would train or be scored in another way than its first candidates.

    What the race itself says (steps, split, rungs) is compared with its record.

    Args:
        ckpt: the checkpoint; empty for none.
        config: the present task file.
        args: the arguments of ``run_downstream.py``.
    """
    if args.mode != "train" or not args.past_exp or ckpt.extension.race_start is None or not ckpt.config:
        return
    known = ("early_stop", "runner.total_steps", "runner.epochs")
    found = [row for row in _changes(ckpt.config, config) if not row[0].startswith(known)]
    found = [row for row in found if has_effect(row[0]) or row[0] in DECISIVE_IN_RACE]
    if found:
        raise UsageError(
            f"{ckpt.path} is the start of a race that began with other settings ({_named(found)}), so that its "
            "candidates could not be compared: resume it with the same ones, or start a new experiment."
        )


# They change no score, but say which scores candidates are compared by.
DECISIVE_IN_RACE = ("runner.eval_dataloaders", "downstream_expert.save_best_on")


def changed_settings(ckpt: Checkpoint, config: Section, args: Namespace) -> list[Record]:
    """Return what a run has been resumed with: at which step which settings became others, the present resume last.

    Args:
        ckpt: the checkpoint; empty for none.
        config: the present task file.
        args: the arguments of ``run_downstream.py``.

    Returns:
        One ``{"step": ..., "settings": {key: [before, now]}}`` per resume with other settings, as far as these decide a
        result. The number of steps does so where the learning rates or the child network follow it.
    """
    earlier = [dict(row) for row in ckpt.extension.changed_settings]
    if args.mode != "train" or not args.past_exp or not ckpt.config or not ckpt.step:
        return earlier
    free = ["early_stop", f"downstream_expert.{LABELS}"]  # check_labels compares these
    optimizer, tuning = config["optimizer"], config.get("tuning") or {}
    if not (config.get("scheduler") or str(optimizer["name"]).endswith("_with_schedule") or tuning.get("gradual")):
        free += ["runner.total_steps", "runner.epochs"]
    found = [row for row in _changes(ckpt.config, config) if not row[0].startswith(tuple(free))]
    known = task_of(args.downstream, config.get("downstream_expert")).corpus_paths if ckpt.extension.data else ()
    found = [row for row in found if has_effect(row[0]) and row[0] not in known]  # check_data compares the corpus
    if not found:
        return earlier
    logger.info("from step %d on with other settings: %s", ckpt.step, _named(found))
    settings = {key: [None if value is _MISSING else value for value in values] for key, *values in found}
    return [*earlier, {"step": ckpt.step, "settings": settings}]


SAME_RUNNER = {
    "cache": None,
    "cache_dtype": "float32",
    "group_by_length": None,
}  # keys that decide about numbers: defaults


def check_runner(ckpt: Checkpoint, config: Section, args: Namespace) -> None:
    """Raise UsageError where a run would go on with other features or batches than it began with."""
    if args.mode != "train" or not args.past_exp or not ckpt.config:
        return
    runners = [c.get("runner") or {} for c in (ckpt.config, config)]
    for key, default in SAME_RUNNER.items():
        before, now = (runner.get(key, default) for runner in runners)
        if before != now:
            said = ["without it" if value is None else f"with {value}" for value in (before, now)]
            raise UsageError(
                f"runner.{key}: {ckpt.path} was trained {said[0]}, the task file goes on {said[1]}: resume with the "
                "same, or start a new experiment."
            )


def _without_rates(tuning: TuningConfig | None) -> TuningConfig | None:
    if tuning is None:
        return None
    return replace(tuning, rates=RatesConfig(train_layers=tuning.rates.train_layers))


def _shown(section: Section | None) -> str:
    """Return a section ``tuning`` as in a task file, on one line."""
    if section is None:
        return "(no section tuning)"
    return yaml.safe_dump(dict(section), default_flow_style=True, sort_keys=False, width=10**6).strip()
