"""Write the tables of a page of results anew from the result files next to it.

    python recipes/shared/page.py recipes/whisper/RESULTS.md

A table stands between ``<!-- heads.json methods_ks.json ks -->`` and ``<!-- end -->``: the mark names packed studies
and one of their tasks, or ``races``; one packed study of ``mam_tuning.sh`` and ``fine_tuned``; or a file of
``lambdas.py``, ``comparisons.py``, ``folds.py`` or ``table5.py`` and one of its tables, such as
``<!-- vctk_noise.json chosen -->``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPES / folder) for folder in ("shared", "whisper", "mam")]
import comparisons
import folds
import lambdas
import mam_tuning
import methods
import races
import table5

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.tables import Table, grid
from s3prl_ext.writing import write_text

MARKED = re.compile(r"(<!-- ((?:[\w/-]+\.json )+)(\w+(?: short)?) -->\n).*?(<!-- end -->)", re.DOTALL)
MARK = re.compile(r"<!--[^>]*\.json[^>]*-->")  # also one that is misspelt, or whose table has no end
TABLES = {
    "grid": lambdas.grid_table, "chosen": lambdas.chosen_table, "aligned": lambdas.aligned_table,
    "changes": comparisons.changes, "categories": comparisons.categories, "tuned": table5.table,
    "over_folds": folds.grid_over_folds, "chosen_over_folds": folds.chosen_over_folds,
}  # fmt: skip


def table_of(files: Sequence[Path], which: str) -> Table:
    """Return a table of result files.

    Args:
        files: packed studies, or one file of another kind.
        which: a task of the studies, with ``short`` behind it some columns; ``races`` or ``fine_tuned``; or a table of
            the file.

    Raises:
        DataError: a file is missing or corrupt, or has no table of this name.
    """
    contents = [read_json(file) for file in files]
    if all("study" in content for content in contents):
        if which == "races":
            return races.table(contents)
        if which == "fine_tuned" and len(contents) == 1:
            return mam_tuning.table(contents[0])
        task, _, short = which.partition(" ")
        return methods.short_table(contents, task) if short else methods.table(contents, task)
    if which not in TABLES or len(files) > 1:
        raise DataError(f"{files[0].name} has no table '{which}'; it has {', '.join(TABLES)}.")
    return TABLES[which](contents[0])


def written(text: str, folder: Path) -> str:
    """Return the page with its tables made from the files in `folder`.

    Raises:
        DataError: it has no mark of a table, or one that cannot be read or has no end.
    """
    understood = {match.start() for match in MARKED.finditer(text)}
    strange = [match[0] for match in MARK.finditer(text) if match.start() not in understood]
    if strange or not understood:
        raise DataError(
            f"{strange[0]} cannot be read as the mark of a table, or lacks its <!-- end -->." if strange else
            "the page has no mark of a table, such as <!-- vctk_noise.json chosen -->."
        )  # fmt: skip

    def anew(match: re.Match[str]) -> str:
        table = table_of([folder / name for name in match[2].split()], match[3])
        lines = [grid(table.head, table.rows, range(1, len(table.head))), *(f"\n- {note}" for note in table.notes)]
        return match[1] + "\n" + "\n".join(lines) + "\n\n" + match[4]

    return MARKED.sub(anew, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE", help="such as recipes/whisper/RESULTS.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a table differs")
    flags = parser.parse_args(argv)
    for page in flags.pages:
        before = page.read_text(encoding="utf-8")
        try:
            after = written(before, page.parent)
        except DataError as error:
            raise DataError(f"{page}: {error}") from None
        if flags.check and after != before:
            raise DataError(f"{page} differs from its result files: run python recipes/shared/page.py {page}.")
        if after != before:
            write_text(page, after)
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
