"""TensorBoard event files in `<run>/tensorboard`; the only file that imports tensorboard.

Records are written directly, without SummaryWriter: that one needs torch or TensorFlow, and TensorFlow
takes GPU memory where it is installed. The x axis is the step.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from pretrain.track import names
from pretrain.track.sink import RunInfo

_FLUSH_SECONDS = 30.0


class TensorboardSink:
    """Scalars of a run as TensorBoard events; a resumed run adds a file and purges the steps it repeats."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._flushed_at = 0.0

    def open(self, info: RunInfo) -> None:
        """Starts a new event file that makes TensorBoard forget the steps after `info.resume_step`."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory = info.directory / "tensorboard"
        directory.mkdir(parents=True, exist_ok=True)
        resumed = any(directory.glob("events.out.tfevents.*"))
        # TensorBoard reads the files of a folder in the order of their names, hence nanoseconds after the dot.
        stamp = f"{time.time():020.9f}"
        path = directory / f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(open(path, "wb"))  # noqa: SIM115 – closed in close()
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(wall_time=time.time(), step=info.resume_step + 1, session_log=start))
        self._flush()

    def log(self, values: Mapping[str, float], *, step: int, tokens: int) -> None:
        """Writes one scalar per value, and with all but scores, which may come late, the tokens as one more."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        late = all(names.parse_probe_name(name) for name in values)
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=float(value))
            for name, value in {**values, **({} if late else {"tokens": tokens})}.items()
        ]
        self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=scalars)))
        if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self._flush()

    def event(self, kind: str, fields: Mapping[str, Any], *, step: int) -> None:
        """Flushes; TensorBoard has no place for events."""
        self._flush()

    def close(self) -> None:
        """Closes the event file; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed_at = time.monotonic()
