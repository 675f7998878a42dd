"""What merges and comparisons of layers call things: names and defaults that flags and settings share.

Without torch.
"""

from __future__ import annotations

OWN_UPSTREAM = "merged_attention"  # the upstream whose merge a file describes

DECODER = "decoder"
TARGET_PREFIXES = ("encoder", DECODER)  # parts of a Whisper

NOISE_KINDS = ("source", "target", "standard")

SIMILARITY_NAMES = ("euclidean", "inner_product", "swd", "swd_coordinates")
SWD_DIRECTIONS = 200  # directions of the sliced Wasserstein distance
LEVELS = ("utterance", "frame")  # at which layers are compared
SHARE = 0.1  # of the training pairs, as in the paper

METHOD_NAMES = ("linear", "slerp", "task_arithmetic", "ties", "dare", "fisher", "regmean")  # how matrices are combined
TIES_DENSITY, DARE_DENSITY = 0.2, 0.1  # share of a task vector that is kept, if nothing else is said
REGMEAN_SHRINK = 0.9  # of second moments off the diagonal, as in its paper
REGMEAN_CLIPS = 64  # recordings of each task that deltas are weighed by, if nothing else is said
DELTA_METHODS = ("linear", "ties", "dare", "fisher", "regmean")  # how the changes of tuned tasks are combined
DELTA_MEANS = ("fisher", "regmean")  # of them those whose lambda is the weight of a task in a mean

ALIGNMENTS = ("heads", "basis")  # what of a source is brought into the order or basis of the target
HEADS_BY = ("weights", "outputs", "patterns")  # what says which heads are alike
