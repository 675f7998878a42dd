"""The encoder of Whisper as an upstream."""
