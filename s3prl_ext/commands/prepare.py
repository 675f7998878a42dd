"""``s3prl-ext prepare``: build a corpus, or fetch a model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from s3prl_ext.errors import unknown_name

# Name for `s3prl-ext prepare NAME` -> module with `main(argv) -> int`; the last is a model.
CORPORA: dict[str, str] = {
    "mini_superb": "s3prl_ext.mini_superb",
    "ljspeech": "s3prl_ext.corpora.ljspeech",
    "vctk": "s3prl_ext.corpora.vctk",
    "esc50": "s3prl_ext.commands.prepare_esc50",
    "iemocap": "s3prl_ext.corpora.iemocap",
    "low_resource": "s3prl_ext.corpora.low_resource",
    "whisper": "s3prl_ext.commands.prepare_whisper",
}

_USAGE = """usage: s3prl-ext prepare CORPUS [options]

corpora: {names}
`s3prl-ext prepare CORPUS --help` lists its options.

example:
  s3prl-ext prepare mini_superb --out mini"""


def main(argv: Sequence[str]) -> int:
    """Run ``s3prl-ext prepare CORPUS ...``; return the exit status.

    Raises:
        UsageError: unknown corpus.
    """
    usage = _USAGE.format(names=", ".join(CORPORA))
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    if argv[0] not in CORPORA:
        raise unknown_name("corpus", argv[0], CORPORA)
    return importlib.import_module(CORPORA[argv[0]]).main(list(argv[1:]))
