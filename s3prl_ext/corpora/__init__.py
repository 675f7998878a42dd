"""Corpora: their archives, layouts, texts and splits."""
