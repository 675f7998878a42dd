"""Query by example: how well each query matches somewhere in each recording."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_ext.compat.quesst14 import OUTPUT, SHORTEST_QUERY, scores_of
from s3prl_ext.compat.sox import apply_effects_tensor
from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.prediction import windows as cuts
from s3prl_ext.prediction.decoder import Decoder, Inputs
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import Failure, Result, SearchResult
from s3prl_ext.prediction.windows import Window
from s3prl_ext.tasks import remedy, task_of

EFFECTS = [["gain", "-3.0"]]  # of s3prl's dataset


class SearchDecoder(Decoder):
    """The search of s3prl: dynamic time warping over features that are normalised over the recordings of the call."""

    RESULT = SearchResult
    OPTIONS = ("window", "queries")

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        name = str(inputs.info["downstream"])
        task = task_of(name, inputs.section)
        if task.lacks():
            raise UsageError(f"-d {name} needs {', '.join(task.lacks())}, not installed here: {remedy(task)}.")
        if not inputs.options.queries:
            raise UsageError(f"-d {name} looks for spoken queries: name their recordings with --queries.")
        from s3prl.downstream.quesst14_dtw.expert import DownstreamExpert

        self.before = list(inputs.options.queries)
        self.head = DownstreamExpert(inputs.width, inputs.section, expdir="")

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        return apply_effects_tensor(torch.from_numpy(samples)[None], SAMPLE_RATE, EFFECTS)[0][0].numpy()

    def windows(self, samples: np.ndarray) -> list[Window]:
        return cuts.equal(len(samples), self.longest)

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[Tensor]:
        silence = self.head.silence_frame  # the search drops these frames, so they are not part of its length
        kept = (one if silence is None else one[one.argmax(1) != silence] for one in features)
        return [one.cpu() for one in kept]

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[Tensor]) -> SearchResult:
        notes = recording.notes
        if len(windows) > 1:
            notes += (f"cut into {len(windows)} windows, whose features are joined",)
        return SearchResult(recording.name, recording.seconds, notes, features=torch.cat(list(pieces)))

    def together(self, results: Iterator[Result | Failure]) -> Iterator[Result | Failure]:
        every = [self._usable(result, number < len(self.before)) for number, result in enumerate(results)]
        asked, searched = every[: len(self.before)], every[len(self.before) :]
        queries = [result for result in asked if isinstance(result, SearchResult)]
        documents = [result for result in searched if isinstance(result, SearchResult)]
        if not queries:
            raise DataError(f"no query can be used: {asked[0].error if isinstance(asked[0], Failure) else ''}")
        if len(documents) < 2:
            raise DataError(
                "scores count from the mean over the recordings of a call: give two or more that can be searched."
            )
        yield from (result for result in asked if isinstance(result, Failure))
        scores = iter(self._search(queries, documents))
        for result in searched:
            if isinstance(result, SearchResult):
                pairs = zip((query.file for query in queries), next(scores), strict=True)
                yield replace(result, scores=tuple(pairs), features=None)
            else:
                yield result

    def _usable(self, result: Result | Failure, is_query: bool) -> Result | Failure:
        if is_query and isinstance(result, SearchResult) and len(result.features) < SHORTEST_QUERY:
            frames = len(result.features)
            return Failure(
                result.file,
                f"the query {result.file} has {frames} frames; one of fewer than {SHORTEST_QUERY} is not found.",
            )
        return result

    def _search(self, queries: Sequence[SearchResult], documents: Sequence[SearchResult]) -> list[list[float]]:
        """Return the scores of all queries for each document."""
        expert: Any = self.head
        records: dict[str, list[Any]] = defaultdict(list)
        names = [f"query{n}" for n in range(len(queries))] + [f"document{n}" for n in range(len(documents))]
        with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            expert.expdir, expert.test_dataset = Path(folder), SimpleNamespace(n_queries=len(queries))
            expert("test", [one.features for one in (*queries, *documents)], names, records)
            expert.search("test", records)
            found = scores_of(Path(folder) / OUTPUT)
        return [[found[query][document] for query in names[: len(queries)]] for document in names[len(queries) :]]
