"""Under which name a weight file holds each tensor of an upstream: ``model.encoder.x`` is ``hubert.encoder.x``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from s3prl_ext.errors import DataError
from s3prl_ext.models.architectures import names_on_disk

Shapes = Mapping[str, tuple[int, ...]]

# Names of the two factors of a weight-normalised convolution: torch's parametrisation -> the older ones of the files.
WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def match_names(upstream: Shapes, file: Shapes, where: str) -> dict[str, str]:
    """Return the name in a file for each tensor of an upstream that the file holds in the same shape.

    The two namings differ by a prefix; the pair of prefixes with the most matches counts.

    Args:
        upstream: shape of each tensor of the upstream's state dict.
        file: shape of each tensor of the file.
        where: what the file is called in messages.

    Raises:
        DataError: no name matches, or two ways of matching are equally good.
    """
    ours = {_plain(on_disk): name for name, on_disk in names_on_disk(upstream).items()}
    theirs = {_plain(name): name for name in file}
    best: list[dict[str, str]] = [{}]
    for own_prefix in _prefixes(ours):
        tails = [name.removeprefix(own_prefix) for name in ours if name.startswith(own_prefix)]
        for prefix in _prefixes(theirs):
            matches = {
                ours[own_prefix + tail]: theirs[prefix + tail]
                for tail in tails
                if prefix + tail in theirs and upstream[ours[own_prefix + tail]] == file[theirs[prefix + tail]]
            }
            if len(matches) > len(best[0]):
                best = [matches]
            elif len(matches) == len(best[0]) and matches and matches not in best:
                best.append(matches)
    if not best[0]:
        raise DataError(f"{where} has no tensor of this upstream: give the model that it is built from.")
    if len(best) > 1:
        examples = " or ".join(next(iter(matches.values())) for matches in best[:2])
        raise DataError(f"{where} holds several models of this kind ({examples}): give a file with one of them.")
    return best[0]


def _plain(name: str) -> str:
    for newer, older in WEIGHT_NORM.items():
        if name.endswith(newer):
            return name.removesuffix(newer) + older
    return name


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the possible prefixes of a model's names: none, or up to two parts, such as ``hubert.``."""
    found = {""}
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:n]) + "." for n in (1, 2) if len(parts) > n}
    return sorted(found)
