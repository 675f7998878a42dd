"""What an evaluation says of a task that has nothing to train: upstream, features and task file, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import task_of
from s3prl_ext.training import last_hidden_state
from s3prl_ext.training.run_spec import RunSpec


def read_evaluated(path: Path) -> TrainedTask | None:
    """Return the task behind the evaluations of one without training; None where `path` is something else.

    Args:
        path: a ``result-SPLIT.json``, or the folder that holds it.

    Raises:
        DataError: it is corrupt or of a task that is trained, or the folder holds evaluations of several models.
    """
    if path.is_file() and path.suffix == ".json":
        found = _read(path)
        if found is None:
            raise DataError(
                f"{path} is not the evaluation of a task without training: name a checkpoint, or its folder."
            )
        return found
    folder = RunFolder(path)
    if folder.is_started or folder.delta.is_file():
        return None
    tasks = [task for file in folder.evaluations() if (task := _read(file)) is not None]
    if len({(task.spec, repr(task.expert)) for task in tasks}) > 1:
        names = ", ".join(task.path.name for task in tasks)
        raise DataError(f"{path} holds evaluations of several models or settings ({names}): name one of these files.")
    return next(iter(tasks), None)


def _read(path: Path) -> TrainedTask | None:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        spec, config = RunSpec.of(content["args"]), content["config"]
        trains = task_of(str(spec.downstream), config["downstream_expert"]).trains
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not the result of an evaluation ({type(error).__name__}: {error}).") from error
    if trains or content.get("error") is not None:
        return None
    about: Mapping[str, Any] = spec.stored() | {
        "tuning": None,
        "config": config,
        last_hidden_state.KEY: content.get(last_hidden_state.KEY),
    }
    return TrainedTask(path, about, Delta(content.get("upstream_sha256") or "", info=about), merge=content.get("merge"))
