"""How an alignment before a merge is written.

``align: heads``, ``align: {kind: basis, pairs: pairs.tsv}``, or a list of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, cast

from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.merging.names import ALIGNMENTS, HEADS_BY, SHARE
from s3prl_ext.settings import Problems, choice, count, load, name, number, switch, with_kind


@dataclass(frozen=True)
class HeadAlignment:
    """``align: heads``: each head of the target is paired with the source's head that is most like it.

    Attributes:
        heads: number of heads of a layer; None to read it from the models.
        by: what says which heads are alike: their weights, or their outputs or attention patterns on paired inputs.
        pairs, root, split, share, seed: as in :class:`BasisAlignment`; no pairs where weights say it.
    """

    kind: Annotated[str, choice("heads")] = "heads"
    heads: Annotated[int | None, count()] = None
    by: Annotated[str, choice(*HEADS_BY)] = "weights"
    pairs: Annotated[str | None, name()] = None
    root: Annotated[str | None, name()] = None
    split: Annotated[str | None, name()] = None
    share: Annotated[float, number(above=0, most=1)] = SHARE
    seed: Annotated[int, count(0)] = 0


@dataclass(frozen=True)
class BasisAlignment:
    """``align: {kind: basis, pairs: pairs.tsv}``: the source's hidden space is rotated onto the target's.

    Attributes:
        pairs: table or corpus folder of paired inputs.
        root: folder that the paths of a table are relative to; None for the table's own.
        split: rule or file that divides a corpus folder, whose train list is used; None for its own rule.
        share: part of the pairs that is drawn, in (0, 1].
        seed: of that draw.
        special_tokens: keep [CLS] and [SEP], or a class token, among the source's tokens.
    """

    pairs: Annotated[str, name()]
    kind: Annotated[str, choice("basis")] = "basis"
    root: Annotated[str | None, name()] = None
    split: Annotated[str | None, name()] = None
    share: Annotated[float, number(above=0, most=1)] = SHARE
    seed: Annotated[int, count(0)] = 0
    special_tokens: Annotated[bool, switch()] = True


@dataclass(frozen=True)
class Alignment:
    """Section ``align`` of a source.

    Attributes:
        heads: how heads are paired; None where head i is paired with head i.
        basis: how the hidden space is rotated; None where it stays. It comes first, so that heads are compared in one
            basis.
    """

    heads: HeadAlignment | None = None
    basis: BasisAlignment | None = None

    @property
    def runs(self) -> bool:
        """Whether both models are run over paired inputs."""
        return self.basis is not None or (self.heads is not None and self.heads.by != HEADS_BY[0])

    def plain(self) -> list[dict[str, Any]]:
        """Return the section as plain values, as one would write it in full."""
        parts = [asdict(part) for part in (self.basis, self.heads) if part is not None]
        unused = ("by", "share", "seed") if self.heads is not None and self.heads.pairs is None else ()
        return [
            {
                key: value
                for key, value in part.items()
                if value is not None and (part["kind"] == "basis" or key not in unused)
            }
            for part in parts
        ]


PARTS: dict[str, type] = {"heads": HeadAlignment, "basis": BasisAlignment}


def parse_align(value: Any, where: str = "align") -> Alignment | None:
    """Check a section ``align``: a kind, a mapping such as ``{kind: heads, heads: 12}``, or a list of them.

    None stays None.

    Raises:
        UsageError: with one line for every problem found.
    """
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    places = [f"{where}[{index}]" for index in range(len(items))] if isinstance(value, list) else [where]
    problems = Problems()
    if not items:
        problems.append(f"{where} is empty: give {' or '.join(ALIGNMENTS)}, or leave it out.")
    parts = [problems.attempt(_parse_part, item, place) for item, place in zip(items, places, strict=True)]
    kinds = [part.kind for part in parts if part is not None]
    problems += [f"{where} says {kind} twice: once is enough." for kind in ALIGNMENTS if kinds.count(kind) > 1]
    problems.raise_lines()
    heads = next((part for part in parts if isinstance(part, HeadAlignment)), None)
    return Alignment(heads, next((part for part in parts if isinstance(part, BasisAlignment)), None))


def _parse_part(value: Any, where: str) -> HeadAlignment | BasisAlignment:
    forms = "heads, a mapping such as {kind: basis, pairs: FILE}, or a list of both"
    content = with_kind(value, where, forms, ALIGNMENTS)
    if content["kind"] not in PARTS:
        raise unknown_name("kind", str(content["kind"]), PARTS, where)
    if content["kind"] == "basis" and "pairs" not in content:
        raise UsageError(
            f"{where}: a basis is found from paired inputs: give {{kind: basis, pairs: FILE}}, a table or "
            "corpus folder."
        )
    part = cast("HeadAlignment | BasisAlignment", load(PARTS[content["kind"]], content, where))
    if isinstance(part, HeadAlignment):
        _check_pairs(part, content, where)
    return part


def _check_pairs(heads: HeadAlignment, content: Mapping[str, Any], where: str) -> None:
    """Refuse pairs where weights say which heads are alike, and ask for them where something else does."""
    if heads.by != HEADS_BY[0] and heads.pairs is None:
        raise UsageError(
            f"{where}: {heads.by} of heads are compared on paired inputs: give pairs, a table or corpus folder."
        )
    surplus = [key for key in content if key in ("pairs", "root", "split", "share", "seed")]
    if heads.by == HEADS_BY[0] and surplus:
        raise UsageError(
            f"{where}: {', '.join(surplus)} belong to by: {' or '.join(HEADS_BY[1:])}, but heads are paired by weights."
        )
