"""Keep what a study measured as one small file, and lay it out again.

    python recipes/shared/evidence.py pack exp/whisper methods.json --variables WHISPER
    WHISPER=FOLDER python recipes/shared/evidence.py unpack methods.json exp/whisper

``pack`` keeps the plan of the study and the result file of every training and test, without the paths of the machine:
arguments and task files are left out, which the plan gives, and a path that a variable names becomes ``${WHISPER}``.
``unpack`` writes them back, so that ``s3prl-ext report`` shows the study and ``s3prl-ext study`` goes on with it: what
has its result is not trained again. Checkpoints and logs are not kept, nor when a file was written. That decides a race
without waiting (``scheduler: asha``), which is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3prl_ext.configs import value_at
from s3prl_ext.errors import DataError, UsageError, as_command
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.run_flags import canonical, parser
from s3prl_ext.studies.config import FILE, kept_study
from s3prl_ext.studies.plan import combinations, run_of
from s3prl_ext.writing import write_json, write_text

OF_THE_MACHINE = ("args", "config")  # of a result file: they hold paths, and follow from the plan
BASIS = {"data.sha256": "another corpus", "splits_sha256": "other splits", "upstream_sha256": "another upstream"}


def packed(folder: Path, variables: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a study's folder holds.

    Args:
        folder: of the study.
        variables: of the environment, whose values are paths in the plan.

    Returns:
        ``study``: the plan; ``common``: what all result files have in common; ``results``: the rest of each, by path.

    Raises:
        DataError: there is no study, or nothing of it has ended.
        UsageError: a variable is not set, another absolute path is left, or the order of its files decides a race.
    """
    study = kept_study(folder)
    if study is None:
        raise DataError(f"{folder} contains no study: name the folder that s3prl-ext study wrote (-p).")
    if study.race is not None and study.scheduler == "asha":
        raise UsageError(
            f"{folder} is a race without waiting (asha), which the times of its files decide: copy it (cp -a)."
        )
    for name in variables:
        if not os.environ.get(name):
            raise UsageError(f"the variable {name} is not set: export the value that it had when the study ran.")
    paths = {os.environ[name]: f"${{{name}}}" for name in variables}
    plan = _without(read_json(folder / FILE), paths, folder / FILE)
    found = sorted([*folder.rglob("result*.json"), *folder.rglob("at-[0-9]*.json")])
    if not found:
        raise DataError(f"nothing of the study in {folder} has ended.")
    records = {path.relative_to(folder).as_posix(): _without(_measured(path), paths, path) for path in found}
    first = next(iter(records.values()))
    common = {
        key: value
        for key, value in first.items()
        if all(key in record and record[key] == value for record in records.values())
    }
    rest = {
        path: {key: value for key, value in record.items() if key not in common} for path, record in records.items()
    }
    return {"study": plan, "common": common, "results": rest}


def _measured(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if key not in OF_THE_MACHINE}


def _without(content: Any, paths: Mapping[str, str], where: Path) -> Any:
    """Return plain values with the variables in place of these paths; no other absolute path may be left."""
    content = _each(content, lambda text: _replaced(text, paths))
    left: list[str] = []
    _each(content, lambda text: left.append(text) if text.startswith("/") else None)
    if left:
        raise UsageError(f"{where} contains the path {left[0]}: name the variable that holds it (--variables).")
    return content


def text_of(content: dict[str, Any]) -> str:
    """Return a packed study as JSON with one line for each result, so that changes of the file can be read."""
    lines = [f"{json.dumps(path)}: {json.dumps(record)}" for path, record in content["results"].items()]
    plan, common = (json.dumps(content[key]) for key in ("study", "common"))
    return f'{{"study": {plan},\n"common": {common},\n"results": {{\n' + ",\n".join(lines) + "\n}}\n"


@contextmanager
def laid_out(content: Mapping[str, Any]) -> Iterator[Path]:
    """Inside, a packed study lies in a folder."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "study"
        unpack(dict(content), folder)
        yield folder


def check_one_basis(contents: Sequence[Mapping[str, Any]], task: str | None = None) -> None:
    """Check that packed studies measured a task on one corpus, with the same splits and the same upstream.

    Within a study that is checked where it is read. What a result does not say is not compared.

    Args:
        contents: packed studies, of which one table is made.
        task: its short name; None for every task.

    Raises:
        DataError: naming a run of each of two studies that differ.
    """
    first: dict[tuple[str, ...], tuple[int, str, str]] = {}
    for number, content in enumerate(contents, 1):
        records = {path: {**content["common"], **rest} for path, rest in content["results"].items()}
        for path, record in records.items():
            of, _, _, *varied, seed, _ = path.split("/")
            if task not in (None, of):
                continue
            axes = [one for part in varied for one in part.split(",")]
            axes = [one for one in axes if one.partition("=")[0] not in content["study"]["choose"]]
            for key, what in BASIS.items():
                if (value := value_at(record, key)) is None:
                    continue
                drawn = key == "upstream_sha256" and len({one.get(key) for one in records.values()} - {None}) > 1
                known = (of, key, *axes, *([seed] if drawn else []))
                other, where, found = first.setdefault(known, (number, path, value))
                if other != number and found != value:
                    raise DataError(
                        f"{path} of study {number} was run on {what} than {where} of study {other} (by SHA-256): one "
                        "table compares runs of one corpus, division and upstream, so leave one of the files out."
                    )


def unpack(content: dict[str, Any], folder: Path) -> None:
    """Write a packed study into a folder; variables in the plan are replaced where they are set.

    Raises:
        DataError: the folder holds another result of a run.
    """
    values = {f"${{{name}}}": value for name, value in os.environ.items()}
    files: dict[Path, Any] = {folder / FILE: _each(content["study"], lambda text: _replaced(text, values))}
    for path, record in content["results"].items():
        files[folder / path] = {**{key: {} for key in OF_THE_MACHINE}, **content["common"], **record}
    for path in files:
        if path.is_file():
            raise DataError(f"{path} is there already: unpack into a new folder.")
    for path, value in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value, indent=1)
    _follow_the_plan(folder)


def _follow_the_plan(folder: Path) -> None:
    """Complete the result files of a study by the arguments and the task file of each run, which its plan gives."""
    study = kept_study(folder)
    assert study is not None
    for labels in combinations(study):
        for seed in {*study.seeds, *study.search_seeds}:
            run = run_of(study, labels, seed, folder)
            for path in sorted(run.folder.glob("*.json")):
                args = vars(parser().parse_args(canonical(run.flags())))
                content = read_json(path)
                content |= {
                    "args": {**args, "seed": seed, "mode": content.get("mode", "train")},
                    "config": run.config(),
                }
                write_json(path, content, indent=1)


def _each(value: Any, change: Callable[[str], Any]) -> Any:
    """Return a plan with every text in it changed."""
    if isinstance(value, dict):
        return {key: _each(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_each(part, change) for part in value]
    return change(value) if isinstance(value, str) else value


def _replaced(text: str, names: Mapping[str, str]) -> str:
    """Return a path with its beginning replaced where it is one of `names`."""
    for name, other in names.items():
        if text == name or text.startswith(f"{name}/"):
            return other + text[len(name) :]
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="write what a study measured into one file")
    pack.add_argument("folder", type=Path, help="of the study (-p)")
    pack.add_argument("file", type=Path, help="file to write, such as methods.json")
    pack.add_argument("--variables", nargs="*", default=[], metavar="NAME", help="that hold paths in the study file")
    lay_out = commands.add_parser("unpack", help="lay a packed study out as a folder")
    lay_out.add_argument("file", type=Path)
    lay_out.add_argument("folder", type=Path)
    flags = parser.parse_args(argv)
    if flags.command == "pack":
        write_text(flags.file, text_of(packed(flags.folder, flags.variables)))
    else:
        unpack(read_json(flags.file), flags.folder)
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
