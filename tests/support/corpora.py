"""Which miniature corpora are made of recordings alone."""

# Slot filling has no recordings; the other tasks of SUPERB are synthesised too.
RECORDED = ("ks", "ic", "sid", "asr", "pr", "sd", "esc50", "ljspeech", "vctk")
