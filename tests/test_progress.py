"""Progress bars in a log file and on a terminal."""

from __future__ import annotations

import io
import sys

from s3prl_ext import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_short_bar_leaves_nothing_in_a_log(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert sum(progress.bar(range(1000), desc="steps")) == 499500
    assert log.getvalue() == ""


def test_a_long_bar_leaves_a_line_now_and_then(monkeypatch):
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    bar = progress.bar(total=1000, desc="steps")
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = 0.0
    for _ in range(1000):
        now[0] += 0.1
        bar.update(1)
    bar.close()
    lines = log.getvalue().splitlines()
    assert 2 <= len(lines) <= 5 and all(line.startswith("steps:") for line in lines), lines
    assert "\r" not in log.getvalue()


def test_a_terminal_has_the_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    list(progress.bar(range(3), desc="steps"))
    assert "100%" in screen.getvalue()
