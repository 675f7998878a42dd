"""The task LibriSpeech, transcribed by a head that already exists."""
