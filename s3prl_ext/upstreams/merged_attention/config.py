"""Turn what s3prl passes to an upstream (``-g``, ``-k``) or a shipped YAML file into a merge configuration.

See :mod:`s3prl_ext.overrides` for the syntax. For a shipped configuration (``-u mam_...``) the file is left out:
``-g "lambda=0.2"`` or ``-g ",,lambda=0.2"``.

Variables are those of task files: ``${NAME}``, ``${NAME:-default}``, ``${S3PRL_PACKAGE}``. Relative paths count from
the working folder, as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s3prl_ext.configs import UnsetVariable, expand_variables, load_yaml, shipped_dir
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.merging.config import MergeConfig, parse_config
from s3prl_ext.merging.names import OWN_UPSTREAM
from s3prl_ext.overrides import apply_overrides, split_options

PATHS = ("model", "ckpt", "from", "pairs", "root", "adapter")  # keys of sections that hold a path


def preset_names() -> list[str]:
    """Return the names of the shipped configurations, each of which is an upstream."""
    return sorted(path.stem for path in shipped_dir("upstream_configs").glob("*.yaml"))


def is_merged(upstream: str) -> bool:
    """Return whether an upstream of this name is made of several models."""
    return upstream == OWN_UPSTREAM or upstream in preset_names()


def preset_file(name: str) -> Path:
    """Return the file of a shipped configuration.

    Raises:
        UsageError: there is none of that name; the message lists all.
    """
    if name not in preset_names():
        raise unknown_name("upstream configuration", name, preset_names())
    return shipped_dir("upstream_configs") / f"{name}.yaml"


def read_config(model_config: str | None, ckpt: str | None = None, preset: str | None = None) -> MergeConfig:
    """Read, override, expand and check the configuration of a merged upstream.

    Args:
        model_config: the text given to ``-g``, or None.
        ckpt: the text given to ``-k``; it replaces the target's checkpoint or model.
        preset: name of a shipped configuration; None for your own file, which `model_config` then must name.

    Raises:
        UsageError: with every problem of the configuration, one per line.
    """
    return check_config(*read_raw(model_config, ckpt, preset))


def read_raw(
    model_config: str | None, ckpt: str | None = None, preset: str | None = None
) -> tuple[dict[str, Any], str]:
    """Return the configuration as the file says it, with overrides, variables unexpanded; and the name of the file.

    Args:
        model_config, ckpt, preset: as for :func:`read_config`.

    Raises:
        UsageError: no file is named, an override does not fit it, or a path is relative to another folder than was
            meant.
    """
    file, overrides = split_options(model_config)
    if preset is not None and file is not None:
        raise UsageError(
            f"-g names the file {file}, but '{preset}' is a configuration itself: use -u merged_attention -g {file}, "
            f'or give overrides only, such as -g "lambda=0.2".'
        )
    if preset is not None:
        path = preset_file(preset)
    elif file is not None:
        path = Path(file)
    else:
        raise UsageError(
            f"merged_attention needs a configuration: -g my.yaml, or one of -u {', '.join(preset_names())}."
        )
    raw = apply_overrides(load_yaml(path), overrides, str(path))
    if ckpt is not None:
        target = raw.get("target")
        key = "ckpt" if isinstance(target, dict) and "upstream" in target else "model"
        raw = apply_overrides(raw, {f"target.{key}": str(ckpt)}, str(path))
    _check_folder(raw, path)
    return raw, path.name


def _check_folder(raw: dict[str, Any], path: Path) -> None:
    """Raise UsageError where a path is meant from the file's folder, but is not there from the working folder."""
    problems = []
    for place, value in paths_of(raw):
        neighbour = path.parent / value
        if not Path(value).expanduser().exists() and neighbour.exists():
            problems.append(
                f"{path}: {place} {value} is not in the working folder, from which paths count; the one next to the "
                f"file is {neighbour}: write that, or run from {path.parent.resolve()}."
            )
    if problems:
        raise UsageError("\n".join(problems))


def paths_of(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield place and value of each path that a file names: of models, pairs and layers.json."""
    places = {"target": raw.get("target"), "source": raw.get("source"), **_with_pairs(raw)}
    listed = raw.get("sources")
    for number, source in enumerate(listed if isinstance(listed, list) else []):
        places |= {f"sources.{number}": source}
        own = _with_pairs(source) if isinstance(source, dict) else {}
        places |= {f"sources.{number}.{key}": section for key, section in own.items()}
    for place, section in places.items():
        for key in PATHS:
            value = section.get(key) if isinstance(section, dict) else None
            if isinstance(value, str) and value and "${" not in value:
                yield f"{place}.{key}", value


def _with_pairs(raw: dict[str, Any]) -> dict[str, Any]:
    """Return by place the sections that may name a file of paired inputs."""
    align = raw.get("align")
    parts = (
        {f"align.{number}": part for number, part in enumerate(align)} if isinstance(align, list) else {"align": align}
    )
    return {**{key: raw.get(key) for key in ("layers", "layer_map", "method")}, **parts}


def check_config(raw: dict[str, Any], name: str, variables: bool = True) -> MergeConfig:
    """Expand the variables of a configuration and check it.

    Args:
        raw: as :func:`read_raw` returns it.
        name: what the file is called in messages.
        variables: whether all of them must be set.

    Raises:
        UsageError: with every problem of the configuration, one per line.
    """
    unset = list(_unset_variables(raw, name))
    try:
        config = parse_config(raw if unset else expand_variables(raw, name), name)
    except UsageError as error:
        raise UsageError("\n".join([*unset, str(error)])) from error
    if unset and variables:
        raise UsageError("\n".join(unset))
    return config


def _unset_variables(value: Any, where: str) -> Iterator[str]:
    """Yield a complaint for each text in `value` with a variable that is not in the environment and has no default."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unset_variables(item, f"{where}: {key}" if where.endswith(".yaml") else f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unset_variables(item, f"{where}.{index}")
    elif isinstance(value, str):
        try:
            expand_variables(value, where)
        except UnsetVariable as error:
            key = where.rpartition(": ")[2]
            yield f'{error.need}: `export {error.name}=/path/to/model`, or give the path with -g ",,{key}=/path".'
