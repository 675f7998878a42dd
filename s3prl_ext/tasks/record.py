"""The record of a task: what every part of this package asks about it. Data only, without torch and without s3prl."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from s3prl_ext.errors import DataError
from s3prl_ext.metrics import MAIN_METRICS, METRICS, Metric
from s3prl_ext.tasks.counts import Count

LABELS = "labels"  # key of section downstream_expert under which a checkpoint holds the names of a head's outputs


def without_labels(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task file without the names of a head's outputs, which follow from the corpus."""
    expert = config.get("downstream_expert")
    if not isinstance(expert, Mapping):
        return dict(config)
    return {**config, "downstream_expert": {key: value for key, value in expert.items() if key != LABELS}}


class Reads(NamedTuple):
    """A file or folder that a task reads, which the hash of its corpus covers; a folder with all files below it.

    Attributes:
        key: of section ``downstream_expert``, dotted; its value is a path or a list of paths.
        divides: how it divides the corpus into splits: patterns of lists below the path (``""``: the path itself);
            ``()``: the names of its files decide; None: not at all.
        parts: key of the section whose lists name folders below the path: only these are read.
        folder: ``"module:function"`` that finds the corpus where its own folder or the one that holds it may be named,
            as the task does; None where the path itself is read.
    """

    key: str
    divides: tuple[str, ...] | None = None
    parts: str | None = None
    folder: str | None = None

    def place(self, path: Path) -> Path:
        """Return what the task reads of a path: itself, or the corpus in it; itself too where that is not there."""
        if self.folder is None:
            return path
        module, _, function = self.folder.partition(":")
        try:
            return Path(getattr(import_module(module), function)(path))
        except DataError:
            return path


class Folds(NamedTuple):
    """The folds of a cross-validation: what is reported is the mean over one run of each.

    Attributes:
        key: of the task file, dotted, that names the fold of a run.
        names: of all folds.
        unnamed: the fold of a run that names none; None where the task wants it named.
    """

    key: str
    names: tuple[str, ...]
    unnamed: str | None = None


class Sets(NamedTuple):
    """Corpora of one task that are trained and reported one by one, such as languages.

    Attributes:
        keys: of the task file, dotted, of which one has the name of the set as its value, or a path such as
            ``SET/clips``.
        metrics: name of a set -> what it is judged by.
    """

    keys: tuple[str, ...]
    metrics: Mapping[str, str]

    def named_in(self, values: Iterable[object]) -> str | None:
        """Return the set that some values name in any case, by their last folder or the one above it; None without any.

        Folders further up do not count: a home directory may be called ``es``.

        Args:
            values: of the keys, in their order.
        """
        known = {name.lower(): name for name in self.metrics}
        parts = (part.lower() for value in values for part in reversed(PurePath(str(value)).parts[-2:]))
        return next((known[part] for part in parts if part in known), None)


class Part(NamedTuple):
    """Keys of section ``downstream_expert``, dotted, by which a task reads a part of every split but train.

    Attributes:
        ratio: share of the clips.
        offset: clips before the first one that is read, where `ratio` is below 1.
    """

    ratio: str
    offset: str

    @staticmethod
    def clips(ratio: float, offset: int) -> slice:
        """Return which clips of a split are read: below a ratio of 1 every int(1 / ratio)-th from the offset on."""
        return slice(offset, None, int(1 / ratio)) if ratio < 1 else ALL_CLIPS


ALL_CLIPS = slice(0, None, 1)
EVALUATE_RATIO = "runner.evaluate_ratio"


def scored_part(task: Task, split: str, at: Callable[[str], Any]) -> str | None:
    """Return the settings by which only a part of a split is scored, as text; None where all of it is.

    Args:
        task: what is scored.
        split: of it.
        at: gives the value at a dotted key of the task file; None where there is none.
    """
    ratio, found = at(EVALUATE_RATIO), []
    if ratio is not None and float(ratio) < 1:
        found.append(f"{EVALUATE_RATIO} {float(ratio):g}")
    if task.part is not None and split != "train":
        ratio, offset = (at(f"downstream_expert.{key}") for key in task.part)
        if ratio is not None and task.part.clips(float(ratio), int(offset or 0)) != ALL_CLIPS:
            found.append(f"{task.part.ratio} {float(ratio):g}" + (f", {task.part.offset} {offset}" if offset else ""))
    return ", ".join(found) or None


class Utterances(NamedTuple):
    """The files in which a task writes its output for each utterance of a split.

    Attributes:
        hypotheses: pattern of the file name, with ``{}`` for the split; one file of the folder fits it.
        references: the same for the references; equal to it where one file has both.
        metric: what they give, by the name that the task reports.
        kind: ``labels`` or ``words`` (a line per utterance: its name, and a label or words to be aligned), or a file
            of ours: ``transcripts`` or ``predictions``.
        between: what separates the name from the rest of a line.
    """

    hypotheses: str
    references: str
    metric: str
    kind: Literal["labels", "words", "transcripts", "predictions"] = "labels"
    between: str = " "


class OtherFigure(NamedTuple):
    """A setting with which a task is reported by another figure, in a column and tables of its own.

    Attributes:
        key: of the task file, dotted.
        value: at which it is that figure.
        name: what the figure is called, such as ``with LM``.
        utterances: the files with the output for each utterance; equal to those of the task where they are.
    """

    key: str
    value: str
    name: str
    utterances: Utterances


class SingleClips(NamedTuple):
    """The batch size of a task's evaluations, which is to be 1.

    Attributes:
        key: of section ``downstream_expert``, dotted.
        otherwise: what a larger one does to the scores, for a warning; None where the task cannot do it.
    """

    key: str
    otherwise: str | None = None


def _installed(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: short name, as in tables and presets.
        downstream: name for ``-d``.
        metrics: it is judged by the first of these that it reports.
        dev: split that chooses (lambda, a candidate, a learning rate).
        test: split that is reported.
        best: file name of the checkpoint that it keeps as the best on dev.
        kept_by: metric by which it keeps that one; None for the one that it is judged by.
        reports: key of section ``downstream_expert`` that lists what it reports: it is judged by the first of these,
            and keeps the best checkpoint by it. None where that is the same for every task file.
        kept_on: key of section ``downstream_expert`` that lists the splits whose best checkpoint it keeps, where one
            best score serves all of them, so that only one may be listed. None where it keeps that of dev.
        corpus: ``downstream_expert.corpus.name``, where several tasks share a name for ``-d``; of several corpora each.
        own_head: its head may come without training (a model's own, a fitted one), and it refuses one that is untrained
            when it is evaluated.
        released_head: its decoder builds that head from a released model, without the corpus: an evaluation without a
            checkpoint then says all that ``s3prl-ext predict`` needs.
        trains: it has something to train; without that it is only evaluated.
        preset: shipped task file where ``-c`` is not given.
        variables: environment variables that its task files read, with the corpus in words; its main one comes first.
        reads: what it reads, for the hash of its corpus.
        folds: of its cross-validation; None where there is none.
        divided_by: further keys of the task file, dotted, whose single values divide the corpus, as the fold does.
        sets: corpora that are reported one by one; None where there is one.
        other_figure: a setting that gives it another figure than its own; None where there is none.
        part: keys by which it reads a part of dev and test; None where it has none.
        divides_batches: parts into which s3prl divides the batches that the task file asks for.
        not_used: keys of its task files that s3prl reads and then leaves alone.
        settings: section of ``downstream_expert`` whose lists take part in the division of the corpus.
        counts: for the interval of each metric: what gives its counts from the records of an evaluation. Without any,
            those of all tasks are tried; only counts that give the value that the task reports are used.
        ratios: metrics that it logs as ratios although they are recorded in per cent.
        utterances: the files with its output for each utterance, which comparisons of two runs read; without any,
            those of all tasks are looked for.
        writes: patterns of further files that an evaluation leaves in the run's folder.
        built: names of files that the task writes when it is built, and reads when it is scored.
        places: attributes of the expert that say where it writes, and that place below the folder of a run.
        decoder: ``"module:name"`` of a class or function that gives what ``s3prl-ext predict`` asks, from
            :class:`s3prl_ext.prediction.decoder.Inputs`; None where there is none.
        superb: metrics that are its columns in SUPERB's row; with :attr:`sets` each set has a column, of its metric,
            and :attr:`other_figure` has one for each.
        superb_note: what is to be known of its figure there; empty where nothing is.
        chosen_on_test: the checkpoints of which SUPERB reports the one that is best on test; None where it reports the
            one that is best on dev.
        frame_below: key of section ``downstream_expert``, dotted, of a number of samples that a frame of the upstream
            must stay below; None where any frame will do.
        single_clips: the batch size of evaluations, where it is to be 1; None where any will do.
        modules: modules of s3prl that it imports, for ``s3prl-ext doctor``.
        needs: modules of the extra ``superb`` that it imports, with the package on PyPI that each comes from.
        new_metrics: direction and unit of metrics that no shipped task has.
    """

    name: str
    downstream: str
    metrics: tuple[str, ...] = MAIN_METRICS
    dev: str = "dev"
    test: str = "test"
    best: str = "dev-best.ckpt"
    kept_by: str | None = None
    reports: str | None = None
    kept_on: str | None = None
    corpus: str | tuple[str, ...] | None = None
    own_head: bool = False
    released_head: bool = False
    trains: bool = True
    preset: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[Reads, ...] = ()
    folds: Folds | None = None
    divided_by: tuple[str, ...] = ()
    sets: Sets | None = None
    other_figure: OtherFigure | None = None
    part: Part | None = None
    divides_batches: int = 1
    not_used: tuple[str, ...] = ()
    settings: str = "datarc"
    counts: Mapping[str, Count] = field(default_factory=dict)
    ratios: tuple[str, ...] = ()
    utterances: Utterances | None = None
    writes: tuple[str, ...] = ()
    built: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=lambda: {"expdir": "", "logging": "log.log"})
    decoder: str | None = None
    superb: tuple[str, ...] = ()
    superb_note: str = ""
    chosen_on_test: str | None = None
    frame_below: str | None = None
    single_clips: SingleClips | None = None
    modules: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    new_metrics: Mapping[str, Metric] = field(default_factory=dict)

    @property
    def variable(self) -> str:
        """The environment variable that names the folder of its corpus."""
        return next(iter(self.variables))

    @property
    def corpus_paths(self) -> frozenset[str]:
        """The keys of a task file, dotted, with the paths of its corpus, of whose files there are hashes."""
        return frozenset(f"downstream_expert.{row.key}" for row in self.reads)

    def reads_corpus(self, name: object) -> bool:
        """Tell whether a task file with this ``downstream_expert.corpus.name``, in any case, is of it."""
        if self.corpus is None:
            return True
        known = (self.corpus,) if isinstance(self.corpus, str) else self.corpus
        return isinstance(name, str) and name.lower() in (one.lower() for one in known)

    def of_file(self, expert: Mapping[str, Any] | None) -> Task:
        """Return its record as a task file has it: with the metrics that the file lists, where they are to be listed.

        Args:
            expert: section ``downstream_expert``; None where it is not known.
        """
        listed = expert.get(self.reports) if self.reports and isinstance(expert, Mapping) else None
        if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(name, str) for name in listed):
            return self
        known = tuple(name for name in listed if name in METRICS)
        return replace(self, metrics=known or self.metrics, kept_by=listed[0])

    def set_named(self, at: Callable[[str], Any]) -> str | None:
        """Return the set, or the name of the other figure, of a run; None for neither.

        Args:
            at: gives the value at a dotted key of its task file; None where there is none.
        """
        other = self.other_figure
        if other is not None and at(other.key) == other.value:
            return other.name
        return self.sets.named_in(at(key) for key in self.sets.keys) if self.sets else None

    def of_set(self, name: str) -> Task:
        """Return its record as it holds for a set, or for its other figure: with the files of single utterances."""
        other = self.other_figure
        return replace(self, utterances=other.utterances) if other is not None and name == other.name else self

    def columns(self) -> list[tuple[str, str]]:
        """Return set (other figure, or "") and metric of each of its columns in SUPERB's row."""
        if self.superb and self.sets is not None:
            return list(self.sets.metrics.items())
        names = ("", self.other_figure.name) if self.other_figure else ("",)
        return [(name, metric) for name in names for metric in self.superb]

    def main_metric(self, reported: Container[str]) -> str | None:
        """Return the metric that it is judged by, or None where it reports none of :attr:`metrics`."""
        return next((name for name in self.metrics if name in reported), None)

    def lacks(self) -> list[str]:
        """Return the packages that it needs and that are not installed."""
        return sorted({package for module, package in self.needs.items() if not _installed(module)})

    def result_files(self) -> tuple[str, ...]:
        """Return patterns of the files that an evaluation leaves in the run's folder."""
        other = self.other_figure
        files = [one for one in (self.utterances, other and other.utterances) if one]
        own = (name.format("*") for one in files for name in one[:2])
        return tuple(dict.fromkeys((*own, *self.writes)))
