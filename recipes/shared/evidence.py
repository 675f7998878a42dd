"""Keep what a study measured as one small file, and lay it out again.

    python recipes/shared/evidence.py pack exp/whisper methods.json --variables WHISPER
    WHISPER=FOLDER python recipes/shared/evidence.py unpack methods.json exp/whisper

``pack`` keeps the plan of the study and the result file of every training and test, without the paths of the machine:
arguments and task files are left out, which the plan gives, and a path that a variable names becomes ``${WHISPER}``. Of
each task file the hash is kept: where the plan gives another one now, since a preset has changed, ``unpack`` refuses.
``unpack`` writes them back, so that ``s3prl-ext report`` shows the study and ``s3prl-ext study`` goes on with it: what
has its result is not trained again. Of the course of a learnt lambda the end is kept. Checkpoints and logs are not, nor
when a file was written. That decides a race without waiting (``scheduler: asha``), which is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3prl_ext.configs import value_at
from s3prl_ext.errors import DataError, UsageError, as_command
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.scored_runs import WITHOUT_EFFECT
from s3prl_ext.run_flags import canonical, parser
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.studies.config import FILE, kept_study
from s3prl_ext.studies.plan import combinations, run_of
from s3prl_ext.studies.study_run import StudyRun
from s3prl_ext.tasks.record import without_labels
from s3prl_ext.writing import write_json, write_text

OF_THE_MACHINE = ("args", "config")  # of a result file: they hold paths, and follow from the plan
CONFIG_HASH = "config_sha256"  # of the task file that ran; in packed files alone
LEARNT = "learnt_lambda"  # the last values of a learnt lambda, by name; in packed files alone
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
    runs = _runs(folder, folder)
    records = {}
    for path in found:
        run = runs.get(path.parent.relative_to(folder).as_posix())
        records[path.relative_to(folder).as_posix()] = _without(_measured(path, run, paths), paths, path)
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


def _measured(path: Path, run: StudyRun | None, paths: Mapping[str, str]) -> dict[str, Any]:
    """Return a result file without paths, and the hash of the task file that ran."""
    content = read_json(path)
    kept = {key: value for key, value in content.items() if key not in OF_THE_MACHINE}
    if run is not None and content.get("config"):
        kept[CONFIG_HASH] = _config_sha256(content["config"], run.config(), paths)
    course = RunFolder(path.parent).lambda_curve
    if path.name == "result.json" and course.is_file():
        learnt = read_json(course)
        kept[LEARNT] = dict(zip(learnt["names"], learnt["lambda"][-1], strict=True))
    return kept


def _without(content: Any, paths: Mapping[str, str], where: Path) -> Any:
    """Return plain values with the variables in place of these paths; no other absolute path may be left."""
    content = _each(content, lambda text: _replaced(text, paths))
    left: list[str] = []
    _each(content, lambda text: left.extend(re.findall(r"(?<!\S)/[^\s,]+", text)))
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
        drawn = len({one.get("upstream_sha256") for one in records.values()} - {None}) > 1  # each seed has its own
        for path, record in records.items():
            of, _, _, *varied, seed, _ = path.split("/")
            if task not in (None, of):
                continue
            axes = [one for part in varied for one in part.split(",")]
            axes = [one for one in axes if one.partition("=")[0] not in content["study"]["choose"]]
            for key, what in BASIS.items():
                if (value := value_at(record, key)) is None:
                    continue
                known = (of, key, *axes, *([seed] if drawn and key == "upstream_sha256" else []))
                other, where, found = first.setdefault(known, (number, path, value))
                if other != number and found != value:
                    raise DataError(
                        f"{path} of study {number} was run on {what} than {where} of study {other} (by SHA-256): one "
                        "table compares runs of one corpus, division and upstream, so leave one of the files out."
                    )


def read_packed(path: Path) -> dict[str, Any]:
    """Return a packed study; DataError for another file."""
    content: Any = read_json(path)
    if not isinstance(content, dict) or not {"study", "common", "results"} <= content.keys():
        raise DataError(f"{path} is not a packed study, which recipes/shared/evidence.py pack writes.")
    return content


def unpack(content: dict[str, Any], folder: Path) -> None:
    """Write a packed study into a folder; variables in the plan are replaced where they are set.

    Arguments and task file of each run are those that the plan gives.

    Raises:
        DataError: the folder holds another result of a run, or the plan gives another task file than the one that ran;
            nothing is written.
    """
    values = {f"${{{name}}}": value for name, value in os.environ.items()}
    plan = _each(content["study"], lambda text: _replaced(text, values))
    with tempfile.TemporaryDirectory() as place:
        write_json(Path(place) / FILE, plan)
        runs = _runs(Path(place), folder)
    paths = {value: name for name, value in values.items() if value and name in json.dumps(content["study"])}
    configs: dict[str, dict[str, Any]] = {}
    files: dict[Path, Any] = {folder / FILE: plan}
    for path, rest in content["results"].items():
        record = {**{key: {} for key in OF_THE_MACHINE}, **content["common"], **rest}
        if learnt := record.pop(LEARNT, None):
            course = {"names": [*learnt], "steps": [record.get("step")], "lambda": [[*learnt.values()]]}
            files[RunFolder((folder / path).parent).lambda_curve] = course
        ran, name = record.pop(CONFIG_HASH, None), str(Path(path).parent)
        if (run := runs.get(name)) is not None:
            config = configs.setdefault(name, run.config())
            if ran not in (None, _config_sha256(config, config, paths)):
                raise DataError(
                    f"{path}: its plan gives another task file now than the one that ran: a preset has changed since, "
                    f"so unpack it with s3prl_ext of the commit that ran it ({record.get('commit') or 'not recorded'})."
                )
            args = vars(parser().parse_args(canonical(run.flags())))
            record |= {"args": {**args, "seed": run.seed, "mode": record.get("mode", "train")}, "config": config}
        files[folder / path] = record
    for path in files:
        if path.is_file():
            raise DataError(f"{path} is there already: unpack into a new folder.")
    for path, value in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value, indent=1)


def _runs(place: Path, folder: Path) -> dict[str, StudyRun]:
    """Return every run of the plan in `place` by its name, with its files in `folder`."""
    study = kept_study(place)
    assert study is not None
    seeds = {*study.seeds, *study.search_seeds}
    found = [run_of(study, labels, seed, folder) for labels in combinations(study) for seed in seeds]
    return {run.name: run for run in found}


def _config_sha256(config: Any, planned: Any, paths: Mapping[str, str]) -> str:
    """Return the hash of a task file without what does not change a result: paths, labels of a checkpoint's head.

    Args:
        config: the task file that ran.
        planned: that of the plan, where variables are not replaced yet.
        paths: variables by their values.
    """
    text = json.dumps(_decisive(without_labels(config), planned, paths), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _decisive(value: Any, planned: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        others = planned if isinstance(planned, dict) else {}
        kept = {key: one for key, one in value.items() if key not in WITHOUT_EFFECT}
        return {str(key): _decisive(one, others.get(key), paths) for key, one in kept.items()}
    if isinstance(value, (list, tuple)):
        others = planned if isinstance(planned, (list, tuple)) and len(planned) == len(value) else [None] * len(value)
        return [_decisive(one, other, paths) for one, other in zip(value, others, strict=True)]
    if isinstance(value, str):
        is_path = value.startswith("/") or any("${" in str(text) for text in (_replaced(value, paths), planned))
        return "a path" if is_path else value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _each(value: Any, change: Callable[[str], Any]) -> Any:
    """Return a plan with every text in it changed."""
    if isinstance(value, dict):
        return {key: _each(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_each(part, change) for part in value]
    return change(value) if isinstance(value, str) else value


def _replaced(text: str, names: Mapping[str, str]) -> str:
    """Return a text with each path in it that is one of `names`, or lies in it, beginning with the other.

    A path may have words before it (``noise of /models/whisper``) and settings or words behind it
    (``pair.yaml,,lambda=0.2``, ``whisper (decoder)``).
    """
    for name, other in names.items():
        path = rf"(?<!\S){re.escape(name)}(?=/|,,|\s|$)"
        text = re.sub(path, lambda _, other=other: other, text)
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
        unpack(read_packed(flags.file), flags.folder)
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
