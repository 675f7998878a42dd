"""Timings: one script per claim, run with ``python -m benchmarks.NAME``. Nothing passes or fails on a clock."""
