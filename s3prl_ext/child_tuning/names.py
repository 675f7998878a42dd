"""The ways of choosing child networks, as tables of names; nothing here imports torch."""

from __future__ import annotations

MASKS = {
    "fisher": "Fisher information",
    "random": "chance",
    "magnitude": "magnitude",
    "snip": "connection sensitivity (SNIP)",
    "lottery": "change in a dense phase (lottery)",
}  # value of tuning.mask -> what chooses, in words
FISHER_MASKS = ("fisher", "snip")  # those that a Fisher pass chooses
PASS_MASKS = (*FISHER_MASKS, "lottery")  # those that work on the training split chooses, which runs can share
BUDGETS = ("global", "layer", "tensor")  # what a density is a fraction of, see :mod:`s3prl_ext.child_tuning.budgets`
BASE_DTYPES = ("float32", "bfloat16")  # in which frozen weights are held
UNITS = ("entry", "row", "head")  # what is chosen as a whole, see :mod:`s3prl_ext.child_tuning.units`
OF_THE_TASK = ("max_batches", "warm_lr")  # settings of a pass that tasks may differ in: a mean over fewer is one too
RESELECTED = ("fisher", "random", "magnitude", "snip")  # masks that can be chosen again during training
# Keys of tuning that AD-TUNING does not have, and the values that are what it does.
PAPER: dict[str, object] = {
    "budget": "global", "unit": "entry", "reselect_every": None, "gradual.start": None, "base_dtype": "float32",
    "eligible": None, "redraw": False,
}  # fmt: skip
