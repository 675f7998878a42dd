"""Query by example: the search scored as its task is, without Java, and without lxml."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import signal
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

from s3prl_ext.compat.shim import Shim, absent, stub_module
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import read_lines
from s3prl_ext.tasks.qbe import maximum_twv

PARTS = {"dev": "dev", "test": "eval"}  # split -> as the corpus calls it
OUTPUT = "benchmark.stdlist.xml"
SHORTEST_QUERY = 5  # frames; s3prl gives a shorter one the same score everywhere
_LEXEME = re.compile(r"LEXEME\s+(\S+).*?\s(quesst14_(?:dev|eval)_[0-9]+)\b")  # document, query


def truth_file(root: Path, part: str) -> Path:
    """Return the list of the documents that hold each query of a part."""
    return root / "scoring" / f"groundtruth_quesst14_{part}" / f"quesst14_{part}.rttm"


def documents_of(path: Path) -> dict[str, set[str]]:
    """Return the documents that hold each query.

    Raises:
        DataError: the list is missing, or no line of it names a query.
    """
    if not path.is_file():
        raise DataError(f"no such list: {path}; QUESST14 must be the folder quesst14Database, complete with scoring/.")
    found: dict[str, set[str]] = defaultdict(set)
    for line in read_lines(path):
        match = _LEXEME.match(line)
        if match is not None:
            found[match[2]].add(match[1])
    if not found:
        raise DataError(f"{path} has no line 'LEXEME DOCUMENT ... quesst14_..._QUERY': unpack the corpus again.")
    return dict(found)


def check_corpus(root: Path, part: str) -> None:
    """Check the lists of a part and that their English recordings are there.

    Raises:
        DataError: naming what is missing, or the first wrong line.
    """
    if not root.is_dir():
        raise DataError(
            f"no such QUESST14 folder: {root}; set QUESST14, or config.downstream_expert.datarc.dataset_root with -o."
        )
    for name in ("utterances", part):
        path = root / "scoring" / f"language_key_{name}.lst"
        if not path.is_file():
            raise DataError(
                f"no such list: {path}; QUESST14 must be the folder quesst14Database, complete with scoring/."
            )
        clips = []
        for number, line in enumerate(read_lines(path), start=1):
            fields = line.split()
            if len(fields) != 2 or "/" not in fields[0]:
                raise DataError(f"{path}, line {number} must be 'FOLDER/.../CLIP.wav LANGUAGE', got {line!r:.80}.")
            if fields[1] == "nnenglish":
                clips.append(root / fields[0].partition("/")[2])
        missing = next((clip for clip in clips if not clip.is_file()), None)
        if missing is not None or not clips:
            raise DataError(
                f"{path} lists {missing or 'no English recording (nnenglish)'}, not in {root}: complete it."
            )
    documents_of(truth_file(root, part))


class _AtOnce:
    """A pool of one process, this one: what is submitted is done at once."""

    def __init__(self, max_workers: int | None = None) -> None:
        del max_workers

    def __enter__(self) -> _AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Return the finished call."""
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done


class Pool(ProcessPoolExecutor):
    """A pool that begins nothing more after an error or Ctrl-C; s3prl's would first finish all that was submitted."""

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__(max_workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=kind is not None)


def scored(path: Path, truth: Mapping[str, set[str]]) -> tuple[list[Any], list[Any]]:
    """Return scores and targets of the queries that occur in some documents of a search, and not in all, by name.

    Args:
        path: the search, as s3prl writes it for the scorer of QUESST.
        truth: the documents that hold each query.
    """
    import numpy as np

    scores, targets = [], []
    for query, rows in sorted(scores_of(path).items()):  # older searches have the order of a set
        holds = np.array([name in truth.get(query, ()) for name in rows])
        if holds.any() and not holds.all():
            scores.append(np.array(list(rows.values())))
            targets.append(holds)
    return scores, targets


def scores_of(path: Path) -> dict[str, dict[str, float]]:
    """Return the score of each document for each query of a search."""
    queries = ET.parse(path).getroot()
    return {
        query.attrib["termid"]: {term.attrib["file"]: float(term.attrib["score"]) + 0.0 for term in query}
        for query in queries
    }


def _try_search(expert: Any) -> None:
    """Search some random frames, so that a setting that does not work ends a run before the corpus is read."""
    from torch import Generator, rand

    generator = Generator().manual_seed(0)
    frames = [rand(SHORTEST_QUERY + n, 4, generator=generator) for n in range(3)]
    given = expert.expdir, expert.max_workers
    with TemporaryDirectory() as folder:
        expert.expdir, expert.max_workers, expert.test_dataset = Path(folder), 1, SimpleNamespace(n_queries=1)
        with contextlib.redirect_stderr(io.StringIO()):  # its bar
            expert.search("test", {"features": frames, "audio_names": ["query", "first", "second"]})
    expert.expdir, expert.max_workers = given
    expert.test_dataset = None


def warn_of_short(queries: Sequence[Any], split: str) -> None:
    """Warn of queries that s3prl does not search for: their score is the same for every document."""
    short = sum(len(query) < SHORTEST_QUERY for query in queries)
    if short:
        logging.getLogger(__name__).warning(
            "split '%s': %d of %d queries have fewer than %d frames of this upstream, "
            "and every document scores alike for them",
            split, short, len(queries), SHORTEST_QUERY,
        )  # fmt: skip


def _wrap_expert(module: ModuleType) -> None:
    from torch import zeros

    expert = module.DownstreamExpert
    get_dataloader, forward, log_records = expert.get_dataloader, expert.forward, expert.log_records
    initialise = expert.__init__

    def loader(self: Any, mode: str, epoch: int = 0) -> Any:
        if mode not in PARTS:
            raise NotImplementedError(f"no split '{mode}'")
        check_corpus(Path(self.datarc["dataset_root"]), PARTS[mode])
        return get_dataloader(self, mode)

    def collect(self: Any, mode: str, features: Any, audio_names: Any, records: Any, **kwargs: Any) -> Any:
        forward(self, mode, features, audio_names, records, **kwargs)
        return zeros(())

    @functools.wraps(expert.__init__)
    def initialise_checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            initialise(self, *args, **kwargs)
            _try_search(self)
        except (AssertionError, DataError, ValueError, KeyError, NameError, TypeError) as error:
            cause = error.__cause__ or error
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200].rstrip(".")
            raise UsageError(
                f"the search cannot run with this section downstream_expert ({reason}): correct dtwrc or "
                "feature_normalization, see -c qbe/superb."
            ) from error

    def search(self: Any, mode: str, records: Any) -> None:
        module.ProcessPoolExecutor = _AtOnce if self.max_workers == 1 else Pool
        module.as_completed = iter  # in the order of the corpus, not of a set
        try:
            log_records(self, mode, records)
        except ValueError as error:
            raise DataError(
                f"the search failed ({error}): a distance may not be a number, as with dist_method cosine_neg_log "
                "and features that are not posteriors."
            ) from error

    @functools.wraps(log_records)
    def search_and_score(self: Any, mode: str, records: Any, logger: Any, global_step: int = 0, **kwargs: Any) -> None:
        if (
            len(records["features"]) > self.test_dataset.n_queries
        ):  # else the split was scored in part, without a document
            warn_of_short(records["features"][: self.test_dataset.n_queries], mode)
            self.search(mode, records)
            truth = documents_of(truth_file(Path(self.datarc["dataset_root"]), PARTS[mode]))
            records["twv_scores"], records["twv_targets"] = scored(Path(self.expdir) / OUTPUT, truth)
        found = maximum_twv(records["twv_scores"], records["twv_targets"]) if records["twv_scores"] else float("nan")
        logger.add_scalar(f"quesst14/{mode}-mtwv", found, global_step=global_step)
        logging.getLogger(__name__).info("%s mtwv: %.4f", mode, found)

    expert.get_dataloader, expert.forward, expert.log_records = loader, collect, search_and_score
    expert.__init__, expert.search = initialise_checked, search


def _lxml() -> Mapping[str, ModuleType]:
    class Tree(ET.ElementTree):
        def write(self, path: Any, encoding: str = "UTF-8", pretty_print: bool = False) -> None:  # type: ignore[override]
            if pretty_print:
                ET.indent(self)
            super().write(path, encoding=encoding)

    etree = stub_module("lxml.etree", Element=ET.Element, SubElement=ET.SubElement, ElementTree=Tree)
    return {"lxml": stub_module("lxml", etree=etree), "lxml.etree": etree}


SHIMS = (
    Shim(
        name="quesst14-lxml",
        module="s3prl.downstream.quesst14_dtw.expert",
        needed=lambda module: absent("lxml"),
        stubs=_lxml,
        reason="query by example imports lxml, which s3prl does not declare, to write one file",
        remove_when="s3prl declares lxml or writes the file with Python's own",
    ),
    Shim(
        name="quesst14-score",
        module="s3prl.downstream.quesst14_dtw.expert",
        needed=lambda module: not hasattr(module.DownstreamExpert.log_records, "__wrapped__"),
        apply=_wrap_expert,
        reason="query by example only writes a file for a scorer in Java, and takes any split for eval",
        remove_when="s3prl reports the maximum term weighted value",
    ),
)
