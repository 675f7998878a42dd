"""Downstream tasks that s3prl lacks; each folder with an ``expert.py`` is found as ``-d NAME``."""
