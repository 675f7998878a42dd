"""What TensorBoard's files of an experiment hold."""

from __future__ import annotations

import struct
from pathlib import Path


def read_scalar(expdir: Path, tag: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of one scalar; of a step that was done twice the later value counts."""
    from tensorboardX.proto.event_pb2 import Event

    values: dict[int, float] = {}
    for path in sorted(expdir.glob("events.out.tfevents.*")):
        content, start = path.read_bytes(), 0
        while start + 12 <= len(content):  # length (8 bytes), its checksum (4), record, its checksum (4)
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            for value in event.summary.value:
                if value.tag == tag:
                    values[event.step] = value.simple_value
            start += 12 + length + 4
    steps = sorted(values)
    return steps, [values[step] for step in steps]
