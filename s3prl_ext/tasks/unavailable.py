"""Tasks of SUPERB-SG that cannot run on today's libraries, and why."""

from __future__ import annotations

UNAVAILABLE = {  # name for -d -> what is missing
    "speech_translation": "its data, model and beam search are fairseq's, whose last release (0.12.2) cannot be "
    "imported on Python 3.11 or later",
    "a2o-vc-vcc2020": "its conversions are only scored by separate programs of s3prl's repository, with vocoders to be "
    "downloaded and with pyworld, pysptk, fastdtw and resemblyzer, and none of that has a replacement here",
}
