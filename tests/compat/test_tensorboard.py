"""Event files that cannot be written do not keep a run from going on, nor from ending."""

from __future__ import annotations

import errno
import importlib
import logging
import threading

from tensorboardX import SummaryWriter
from tensorboardX.record_writer import RecordWriter

import s3prl_ext
from s3prl_ext.compat import tensorboard
from tests.support.event_files import read_scalar

s3prl_ext.install()


def ends(work) -> bool:
    """Return whether something ends within 5 s."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


def test_a_run_ends_where_no_more_threads_can_start(tmp_path, monkeypatch):
    writer = SummaryWriter(str(tmp_path))
    start = threading.Thread.start

    def refuse(thread):
        if "QueueFeeder" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert ends(lambda: (writer.add_scalar("loss", 0.5, 1), writer.close()))
    assert read_scalar(tmp_path, "loss") == ([1], [0.5])


def test_a_training_goes_on_where_the_disk_is_full(tmp_path, monkeypatch, caplog):
    writer = SummaryWriter(str(tmp_path), flush_secs=0)
    write = RecordWriter.flush

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", full)
    with caplog.at_level(logging.WARNING):
        assert ends(lambda: [writer.add_scalar("loss", 0.5, step) for step in range(200)])
        writer.file_writer.event_writer._worker.join(5)
    assert [r.message for r in caplog.records if "end here: [Errno 28]" in r.message]
    monkeypatch.setattr(RecordWriter, "flush", write)
    assert ends(writer.close)


def test_the_repair_is_made_once():
    (shim,) = tensorboard.SHIMS
    assert not shim.needed(importlib.import_module("tensorboardX.event_file_writer"))
