"""ESC-50: environmental sound classification with the head protocols of attention merging (``-d esc50``)."""
