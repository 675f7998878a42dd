"""The task LibriSpeech, transcribed by a head that is there already."""
