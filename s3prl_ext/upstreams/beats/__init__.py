"""BEATs, an audio transformer over patches of the mel spectrogram, as an s3prl upstream."""
