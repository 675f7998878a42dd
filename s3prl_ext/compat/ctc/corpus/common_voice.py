"""Speech recognition on tables of clips and sentences: Common Voice, and SBCSAE (``corpus.name``)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.compat.ctc.corpus.bucketing import BucketingDataset, check_known
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import check_closed, read_text
from s3prl_ext.tasks.record import Part

HEAD = ("path", "sentence")


class CommonVoiceDataset(BucketingDataset):
    """Clips of tables with the token ids of their sentences, in the order of the tables.

    Args:
        split: tables, tab-separated with the columns ``path`` and ``sentence``, as s3prl's preprocessing writes them.
        tokenizer: s3prl's text encoder.
        bucket_size: utterances in one item: neighbours, which its preprocessing sorts by length.
        path: folder of the clips.
        ratio: share of the clips that is read: below 1 every int(1 / ratio)-th one, as in s3prl, which passes 1 for
            train.
        offset: clips before the first one that is read, where `ratio` is below 1.
        kwargs: further keys of the task's ``corpus`` section, not used here.

    Raises:
        UsageError: `ratio` or `offset` is not such a number, or leaves no clip.
        DataError: a table or clip is missing, a line has other columns, or a sentence is empty.
    """

    def __init__(
        self, split: Sequence[str], tokenizer, bucket_size, path, ratio: float = 1.0, offset: int = 0, **kwargs
    ):
        _check_part(ratio, offset)
        if not Path(path).is_dir():
            raise DataError(
                f"no such folder of clips: {path}; set COMMON_VOICE or SBCSAE, "
                "or downstream_expert.corpus.path with -o."
            )
        rows = [row for table in split for row in read_table(Path(table))]
        count, rows = len(rows), rows[Part.clips(ratio, offset)]
        if count and not rows:
            raise UsageError(
                f"downstream_expert.corpus.offset {offset} is behind the last of the {count} clips of {split[0]}: take "
                "a lower one."
            )
        missing = next((name for name, _ in rows if not (Path(path) / name).is_file()), None)
        if missing is not None:
            raise DataError(f"{split[0]} lists {missing}, which is not in {path}: complete the clips, as 16 kHz wav.")
        utterances = [(Path(path) / name, tokenizer.encode(text)) for name, text in rows]
        check_known(utterances, tokenizer, split[0])
        super().__init__(utterances, bucket_size, ascending=None)


def _check_part(ratio: object, offset: object) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise UsageError(f"downstream_expert.corpus.ratio must be a number above 0 and up to 1, got {ratio!r}.")
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise UsageError(f"downstream_expert.corpus.offset must be a whole number from 0 on, got {offset!r}.")


def read_table(table: Path) -> list[tuple[str, str]]:
    """Return path and sentence of each line of a table, with the quotation marks that ``csv`` writes taken off."""
    if not table.is_file():
        raise DataError(
            f"no such table: {table}; s3prl's downstream/ctc/corpus/common_voice_preprocess.py writes it: "
            "set COMMON_VOICE. That of SBCSAE comes from github.com/vectominist/SBCSAE-preprocess: set SBCSAE."
        )
    reader = csv.reader(io.StringIO(read_text(table)), delimiter="\t")
    rows = []
    try:
        if tuple(next(reader, [])[:2]) != HEAD:
            raise DataError(
                f"{table}: its first line must name path and sentence, with a tab between: preprocess it again."
            )
        for fields in reader:
            where = f"{table}, line {reader.line_num}"
            check_closed(fields, where)
            if len(fields) < 2 or not fields[0] or not fields[1].strip():
                line = "\t".join(fields)
                raise DataError(f"{where} must be 'CLIP<tab>SENTENCE', got {line!r:.80}: take it out.")
            rows.append((fields[0], fields[1]))
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: {error}; preprocess it again.") from error
    return rows
