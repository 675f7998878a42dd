"""Extensions: upstreams, tasks, model families and tuning methods that other packages add to the plug-in.

A package names a function without arguments in its entry points, in the group :data:`GROUP`::

    [project.entry-points."s3prl_ext.extensions"]
    whistling = "my_package:register"

The function calls those of this module. It runs once s3prl is imported, so that `s3prl-ext` and s3prl's own commands
see what it registers. A script may call them as well. A name that is taken is refused with its owner, and
:func:`s3prl_ext.uninstall` takes everything back.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ext import plugin
from s3prl_ext.configs import package_dir
from s3prl_ext.errors import UsageError, sentence, unknown_name

if TYPE_CHECKING:
    from s3prl_ext.models.architectures import Architecture
    from s3prl_ext.tasks import Task

logger = logging.getLogger(__name__)

GROUP = "s3prl_ext.extensions"
OURS = "s3prl_ext"
RECORD_FILE = "task.py"


@dataclass(frozen=True)
class Registered:
    """Something that was registered.

    Attributes:
        kind: ``upstream``, ``task``, ``task record``, ``architecture`` or ``method``.
        name: its name.
        owner: the extension, or ``a call in this process``.
        undo: takes it back, where :func:`s3prl_ext.plugin.uninstall` does not.
    """

    kind: str
    name: str
    owner: str
    undo: Callable[[], object] | None = None


registered: list[Registered] = []
failures: dict[str, str] = {}  # extension that could not be loaded -> why
_loaded: set[str] = set()
_loading: str | None = None  # the extension whose function runs


def load() -> None:
    """Call the function of every extension that was not called yet; one that fails is left out with a warning."""
    global _loading
    for entry in metadata.entry_points(group=GROUP):
        package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
        extension = f"{entry.name}{package}"
        if extension in _loaded:
            continue
        _loaded.add(extension)
        _loading = extension
        try:
            entry.load()()
        except Exception as error:  # noqa: BLE001  whatever an extension does wrong, s3prl must still work
            failures[extension] = sentence(error)
            logger.warning("the extension %s is left out: %s", extension, failures[extension])
        finally:
            _loading = None


def forget() -> None:
    """Take back what was registered, as a part of uninstalling; a later :func:`load` calls the extensions again."""
    for row in registered:
        if row.undo is not None:
            row.undo()
    registered.clear()
    failures.clear()
    _loaded.clear()


def register_upstream(name: str, factory: str | Callable[..., Any]) -> None:
    """Make ``-u NAME`` and ``s3prl.hub.NAME`` build an upstream.

    Args:
        name: an identifier.
        factory: called with ``ckpt=`` (``-k``), ``model_config=`` (``-g``) and ``refresh=`` (``-r``), returns the
            upstream; or ``"module:function"``, which is imported when the upstream is first built.

    Raises:
        UsageError: the name is not an identifier or is taken.
    """
    if not name.isidentifier():
        raise UsageError(f"the upstream name '{name}' is not a Python identifier: use letters, digits and underscores.")
    _claim("upstream", name, OURS if name in plugin.upstream_names() else None)
    plugin.add_upstream(name, factory)
    _remember("upstream", name)


def register_tasks(folder: str | Path) -> None:
    """Make each folder in `folder` that has an ``expert.py`` a task: ``-d`` is the folder's name.

    Next to ``expert.py`` there may be ``task.py`` with ``TASK``, what is known of the task
    (:class:`s3prl_ext.tasks.Task`), and ``config.yaml``, the task file where ``-c`` is not given.

    Raises:
        UsageError: there is no task in `folder`, a name is taken, or a ``task.py`` does not fit.
    """
    folder = Path(folder).resolve()
    names = sorted(path.parent.name for path in folder.glob("*/expert.py"))
    if not names:
        raise UsageError(f"{folder} contains no task: a task is a folder in it, named as for -d, with an expert.py.")
    for name in names:
        _claim("task", name, _owner_of_task(name))
    records = [_record_in(folder / name) for name in names if (folder / name / RECORD_FILE).is_file()]
    for record in records:
        _check_task(record)
    plugin.add_task_folder(folder)
    for name in names:
        _remember("task", name)
    for record in records:
        register_task(record)


def register_task(task: Task) -> None:
    """Say what is known of a task that s3prl has already; :func:`register_tasks` does so for those of an extension.

    Args:
        task: the record; a task without one is judged by the first that it reports of slot_type_f1, per, wer, error,
            der and acc, on ``dev`` and ``test``.

    Raises:
        UsageError: there is a record of that name, a metric is unknown, or known with another direction or unit.
    """
    from s3prl_ext import tasks
    from s3prl_ext.metrics import METRICS

    _check_task(task)
    new = {name: metric for name, metric in task.new_metrics.items() if name not in METRICS}
    METRICS.update(new)
    tasks.added.append(task)

    def undo() -> None:
        tasks.added.remove(task)
        for name in new:
            del METRICS[name]

    _remember("task record", task.name, undo)


def _check_task(task: Task) -> None:
    from s3prl_ext import tasks
    from s3prl_ext.metrics import METRICS

    taken = {name for known in tasks.known() for name in (known.name, known.downstream)}
    _claim("task record", task.name, OURS if task.name in taken else None)
    for name, metric in task.new_metrics.items():
        _claim("metric", name, OURS if METRICS.get(name, metric) != metric else None)  # tasks may share a metric
    metrics = [*METRICS, *task.new_metrics]
    for name in (*task.metrics, *task.superb, *task.ratios):
        if name not in metrics:
            raise unknown_name("metric", name, metrics)
    if not task.metrics:
        raise UsageError(f"the record of the task '{task.name}' names no metric: give those that it is judged by.")


def _record_in(folder: Path) -> Task:
    """Return ``TASK`` of the ``task.py`` in a task's folder."""
    from s3prl_ext.tasks import Task

    path = folder / RECORD_FILE
    spec = importlib.util.spec_from_file_location(f"{folder.name}_task", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    record = getattr(module, "TASK", None)
    if not isinstance(record, Task):
        raise UsageError(f"{path} defines no TASK: write TASK = Task(...) with Task of s3prl_ext.tasks.")
    if record.downstream != folder.name:
        raise UsageError(f"{path}: downstream is '{record.downstream}', but -d is the folder's name, '{folder.name}'.")
    return record


def register_architecture(row: Architecture) -> None:
    """Make a model family known: to merges, child networks, adapters, layer decay and plots, as far as its row says.

    Args:
        row: tried after the rows of :data:`s3prl_ext.models.architectures.ARCHITECTURES`.

    Raises:
        UsageError: the name is taken, or the row is incomplete.
    """
    from s3prl_ext.models import architectures

    _claim("architecture", row.name, OURS if row.name in {ours.name for ours in architectures.ARCHITECTURES} else None)
    architectures.add(row)
    _remember("architecture", row.name, partial(architectures.added.remove, row))


def register_layout(row: Architecture) -> None:
    """Make a model family known to merges; deprecated: :func:`register_architecture`. It goes with version 0.3."""
    warnings.warn("register_layout is now s3prl_ext.register_architecture.", DeprecationWarning, stacklevel=2)
    register_architecture(row)


def register_method(name: str, file: Any) -> None:
    """Make ``tuning: {method: NAME}`` insert its own weights into the frozen upstream, and train them.

    Args:
        name: value of ``tuning.method``.
        file: a module, or another object, with the parts of the files in ``s3prl_ext/adapters/``: ``Config``,
            ``PAPER``, ``ACTS_ON``, ``CAN_FOLD``, ``insert``, ``remove``, ``count``, and where it folds ``fold``.

    Raises:
        UsageError: the name is taken, a part is missing, or an option has the name of another key of ``tuning``.
    """
    from s3prl_ext import adapters
    from s3prl_ext.training import methods, parameter_groups, tuning_config

    _claim("method", name, OURS if name in methods.METHODS else None)
    adapters.check_file(name, file)
    keys = {"method", *tuning_config.MASK_KEYS, *parameter_groups.RATE_KEYS}
    taken = sorted(keys & {field.name for field in dataclasses.fields(file.Config)})
    if taken:
        raise UsageError(
            f"the tuning method '{name}' cannot name an option '{taken[0]}': tuning has a key of that name."
        )
    adapters.ADAPTERS[name] = file
    methods.METHODS[name] = methods.adapter_method(file)

    def undo() -> None:
        del adapters.ADAPTERS[name], methods.METHODS[name]

    _remember("method", name, undo)


def _claim(kind: str, name: str, owner: str | None) -> None:
    """Refuse a name that is taken, by an extension or by `owner`."""
    owner = next((row.owner for row in registered if (row.kind, row.name) == (kind, name)), owner)
    if owner is not None:
        raise UsageError(f"the {kind} name '{name}' is taken by {owner}: choose another name.")


def _owner_of_task(name: str) -> str | None:
    if name in plugin.downstream_names():
        return OURS
    return "s3prl" if (package_dir("s3prl") / "downstream" / name).is_dir() else None


def _remember(kind: str, name: str, undo: Callable[[], object] | None = None) -> None:
    registered.append(Registered(kind, name, _loading or "a call in this process", undo))
