"""The map of the plug-in: what it adds to s3prl, under which names, and where each part lives.

================  ============================================================  ==============================
what              where                                                         seen in s3prl as
================  ============================================================  ==============================
upstreams         :data:`UPSTREAMS` and each ``upstream_configs/NAME.yaml``     ``-u NAME``, ``s3prl.hub.NAME``
downstream tasks  each folder of ``s3prl_ext/downstreams/`` with ``expert.py``  ``-d NAME``
extensions        :data:`EXTENSIONS`: upstreams and tasks of other packages     ``-u NAME``, ``-d NAME``
Runner            :data:`RUNNER`                                                every ``run_downstream``
shims             :data:`SHIMS`, one file per library in ``s3prl_ext/compat/``  (repairs only)
================  ============================================================  ==============================

:func:`install` puts all of it in place, at once where a module of s3prl is imported already, otherwise when it is.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext import _autoload
from s3prl_ext.compat import (
    corpus_checks,
    downloads,
    emotion,
    enhancement,
    huggingface_hub,
    kaldi_tables,
    language_model,
    large_corpora,
    listings,
    long_recordings,
    quesst14,
    s3prl,
    sv_voxceleb1,
    task_labels,
    tensorboard,
    torch,
    torchaudio,
    transformers,
    undeclared,
)
from s3prl_ext.compat.import_hooks import FINDER, Hook, activate, after
from s3prl_ext.compat.shim import Shim
from s3prl_ext.configs import DOWNSTREAM_DIR, shipped_dir
from s3prl_ext.errors import DataError, UsageError, nearest

logger = logging.getLogger(__name__)

# name on s3prl.hub -> "module:function", imported when the upstream is first built
UPSTREAMS: dict[str, str] = {
    "merged_attention": "s3prl_ext.upstreams.merged_attention.hubconf:merged_attention",
    "hf_speech_custom": "s3prl_ext.upstreams.hf_speech.hubconf:hf_speech_custom",
    "beats_local": "s3prl_ext.upstreams.beats.hubconf:beats_local",
    "beats_custom": "s3prl_ext.upstreams.beats.hubconf:beats_custom",
    "whisper_local": "s3prl_ext.upstreams.whisper.hubconf:whisper_local",
    "whisper_custom": "s3prl_ext.upstreams.whisper.hubconf:whisper_custom",
}

# makes the upstream of one upstream_configs/NAME.yaml: preset(NAME) -> function(ckpt, model_config, refresh)
PRESET = "s3prl_ext.upstreams.merged_attention.hubconf:preset"

# registers what other installed packages add, once s3prl is imported
EXTENSIONS = "s3prl_ext.extensions"

# takes the place of s3prl.downstream.runner.Runner
RUNNER = "s3prl_ext.training.runner:Runner"

# called once s3prl's runner is imported by run_downstream: completes sys.argv before s3prl reads it
PREPARE_ARGV = "s3prl_ext.run_downstream:prepare_argv"

SHIMS: tuple[Shim, ...] = (
    *torch.SHIMS,
    *torchaudio.SHIMS,
    *huggingface_hub.SHIMS,
    *transformers.SHIMS,
    *undeclared.SHIMS,
    *s3prl.SHIMS,
    *listings.SHIMS,
    *large_corpora.SHIMS,
    *downloads.SHIMS,
    *corpus_checks.SHIMS,
    *kaldi_tables.SHIMS,
    *language_model.SHIMS,
    *long_recordings.SHIMS,
    *emotion.SHIMS,
    *quesst14.SHIMS,
    *sv_voxceleb1.SHIMS,
    *enhancement.SHIMS,
    *task_labels.SHIMS,
    *tensorboard.SHIMS,
)

# loggers of s3prl that warn at each start that a package is missing which only their own upstream needs; the hub
# client's HTTP library, which names every request
CHATTY = ("s3prl.upstream.espnet_hubert.expert", "httpx", "httpx2")

added_upstreams: dict[str, str | Callable] = {}  # of extensions: name -> function or "module:function"
added_task_folders: list[Path] = []  # of extensions: folders like DOWNSTREAM_DIR
_stock: dict[str, Any] = {}  # module name -> the Runner that s3prl had there
_registered: dict[str, Callable] = {}  # name on s3prl.hub -> our entry
_hooks: dict[str, Hook] = {}  # module name -> our hook on its import, while installed
_shimmed = False


def install() -> None:
    """Put shims, upstreams, tasks and Runner into s3prl; calling it again does nothing."""
    global _shimmed
    _autoload.withdraw()
    activate()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not _shimmed:
        _shimmed = True
        for shim in SHIMS:
            shim.register()
    if not _hooks:
        for name, action in _ACTIONS.items():
            _hooks[name] = after(action)
            FINDER.add(name, _hooks[name])


def uninstall() -> None:
    """Take upstream names, tasks and Runner back out of s3prl; shims stay, because imported modules hold them."""
    _autoload.withdraw()
    for name, hook in _hooks.items():
        FINDER.remove(name, hook)
    _hooks.clear()
    _remove_upstreams()
    for folder in task_folders():
        _remove_downstreams(folder)
    added_upstreams.clear()
    added_task_folders.clear()
    if EXTENSIONS in sys.modules:
        sys.modules[EXTENSIONS].forget()
    for name, stock in _stock.items():
        if name in sys.modules:
            sys.modules[name].Runner = stock
    _stock.clear()


def is_installed() -> bool:
    """Tell whether :func:`install` is in force."""
    return bool(_hooks)


def is_registered(name: str) -> bool:
    """Tell whether ``s3prl.hub`` has our upstream `name` at present."""
    return name in _registered


def upstream_names() -> list[str]:
    """List our upstreams: :data:`UPSTREAMS`, the presets of ``upstream_configs/``, and those of extensions."""
    try:
        presets = sorted(path.stem for path in shipped_dir("upstream_configs").glob("*.yaml"))
    except DataError as error:
        logger.warning("%s", error)
        presets = []
    return sorted({*UPSTREAMS, *presets, *added_upstreams})


def task_folders() -> list[Path]:
    """List the folders of tasks: :data:`s3prl_ext.configs.DOWNSTREAM_DIR` and those of extensions."""
    return [DOWNSTREAM_DIR, *added_task_folders]


def downstream_names() -> list[str]:
    """List our tasks: the folders with an ``expert.py`` in :func:`task_folders`."""
    return sorted(path.parent.name for folder in task_folders() for path in folder.glob("*/expert.py"))


def add_upstream(name: str, factory: str | Callable) -> None:
    """Add an upstream of an extension, at once where s3prl's hub is imported already.

    Raises:
        UsageError: s3prl has an upstream or another public name of that name already.
    """
    added_upstreams[name] = factory
    if is_installed() and "s3prl.hub" in sys.modules:
        try:
            put_on_hub(sys.modules["s3prl.hub"], name, _lazy_upstream(name))
        except UsageError:
            del added_upstreams[name]
            raise


def add_task_folder(folder: Path) -> None:
    """Add a folder of tasks of an extension, at once where ``s3prl.downstream`` is imported already."""
    added_task_folders.append(folder)
    if is_installed() and "s3prl.downstream" in sys.modules:
        _add_downstreams(sys.modules["s3prl.downstream"])


def put_on_hub(hub: ModuleType, name: str, entry: Callable) -> None:
    """Make `entry` available as ``s3prl.hub.NAME``.

    Raises:
        UsageError: s3prl has an upstream or another public name of that name already.
    """
    present = getattr(hub, name, None)
    if present is not None and present is not _registered.get(name):
        owner = getattr(present, "__module__", None) or getattr(present, "__name__", "s3prl.hub")
        raise UsageError(f"the upstream name '{name}' is taken by {owner}: choose another name for the file or entry.")
    setattr(hub, name, entry)
    _registered[name] = entry


def _add_upstreams(hub: ModuleType) -> None:
    """Register all our upstreams; one whose name s3prl uses itself is left out with a warning."""
    vars(hub).setdefault("__getattr__", _unknown_upstream)
    for name in upstream_names():
        try:
            put_on_hub(hub, name, _lazy_upstream(name))
        except UsageError as error:
            logger.warning("%s", error)


def _lazy_upstream(name: str) -> Callable:
    """Make the hub entry of one upstream, whose code is imported when it is called."""

    def entry(ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any) -> Any:
        made_by = UPSTREAMS.get(name) or added_upstreams.get(name)
        build = _resolve(made_by) if isinstance(made_by, str) else made_by or _resolve(PRESET)(name)
        return build(ckpt=ckpt, model_config=model_config, refresh=refresh, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Build the upstream {name} of s3prl_ext."
    return entry


def _unknown_upstream(name: str) -> Any:
    """Say which name of ``s3prl.hub`` was meant: its ``__getattr__``, called for names that it lacks."""
    known = sys.modules["s3prl.hub"].options()
    hint = nearest(name, known) if not name.startswith("__") else "."
    raise AttributeError(f"s3prl.hub has no upstream '{name}'{hint}", name=name)


def _remove_upstreams() -> None:
    hub = sys.modules.get("s3prl.hub")
    if getattr(hub, "__getattr__", None) is _unknown_upstream:
        del hub.__getattr__  # type: ignore[union-attr]
    for name, entry in _registered.items():
        if getattr(hub, name, None) is entry:
            delattr(hub, name)
    _registered.clear()


def _add_downstreams(package: ModuleType) -> None:
    """Let ``s3prl.downstream`` find our task packages, behind its own."""
    for folder in task_folders():
        if not folder.is_dir() or str(folder) in package.__path__:
            continue
        for name in sorted(path.parent.name for path in folder.glob("*/expert.py")):
            if any(Path(other, name).is_dir() for other in package.__path__):
                logger.warning("the task '%s' in %s is hidden by one that s3prl has: rename its folder.", name, folder)
        package.__path__.append(str(folder))


def _remove_downstreams(folder: Path) -> None:
    package = sys.modules.get("s3prl.downstream")
    if package is None or str(folder) not in package.__path__:
        return
    for name, module in list(sys.modules.items()):
        if not name.startswith("s3prl.downstream."):
            continue
        file = getattr(module, "__file__", None)
        places = [file] if file else list(module.__path__)  # a folder without __init__.py has no file
        if any(folder in Path(place).parents for place in places):
            del sys.modules[name]
            if name.count(".") == 2 and hasattr(package, name.rpartition(".")[2]):
                delattr(package, name.rpartition(".")[2])
    package.__path__.remove(str(folder))


def _load_extensions(_: ModuleType) -> None:
    """Register what other installed packages add; the package s3prl is complete, so they may import from it."""
    importlib.import_module(EXTENSIONS).load()


def _replace_runner(_: ModuleType) -> None:
    """Put our Runner in the place of s3prl's, once both modules are complete.

    Our module imports s3prl's, so either can come first: this runs after each, and the later one finds both complete.
    """
    module_name, attribute = RUNNER.split(":")
    runner = getattr(importlib.import_module(module_name), attribute, None)
    if runner is None:
        return
    for name in ("s3prl.downstream.runner", "s3prl.run_downstream"):
        present = getattr(sys.modules.get(name), "Runner", None)
        if present is not None and present is not runner:
            _stock[name] = present
            sys.modules[name].Runner = runner


def _enter_runner(module: ModuleType) -> None:
    """Replace s3prl's Runner and, in the main process of ``run_downstream``, complete the command line."""
    _replace_runner(module)
    if _autoload.is_run_downstream() and multiprocessing.parent_process() is None:
        _resolve(PREPARE_ARGV)()


def _resolve(reference: str) -> Any:
    """Import the object that ``"module:name"`` refers to."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


# module of s3prl -> what is done to it once it has been imported
_ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    "s3prl": _load_extensions,
    "s3prl.hub": _add_upstreams,
    "s3prl.downstream": _add_downstreams,
    "s3prl.downstream.runner": _enter_runner,
    "s3prl_ext.training.runner": _replace_runner,
}
