"""Feeds the record and the views: one row per step, record first, and a failing view never stops training.

Values of a step are gathered and committed as one row: by `commit()`, which the loop calls after a step's
hooks and the save calls before it publishes, or by the first value of a later step. Only rank 0 has sinks;
elsewhere every method does nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from pretrain.config.track import TrackConfig
from pretrain.track.jsonl import JsonlSink
from pretrain.track.sink import RunInfo, Sink


class Tracker:
    """Where metrics and events of a run go.

    Args:
        record: the JSONL record, open; None where nothing is recorded, as on ranks other than 0.
        views: everything else, open; each is dropped at its first failure.
    """

    def __init__(self, record: JsonlSink | None = None, views: Sequence[Sink] = ()) -> None:
        self._record = record
        self._views = list(views)
        self._row: dict[str, float] = {}
        self._step = 0
        self._tokens = 0

    def log(self, values: Mapping[str, float], *, step: int, tokens: int) -> None:
        """Adds values to the row of `step`; commits the row before it if that is another step's.

        Args:
            values: by name, see `pretrain.track.names`.
            step: optimizer steps done.
            tokens: tokens trained on.
        """
        if step != self._step:
            self.commit()
        self._row.update(values)
        self._step, self._tokens = step, tokens

    def commit(self, *, durable: bool = False) -> None:
        """Writes the gathered row to the record, then to the views; does nothing if there is none.

        A save must call this before it publishes: a run that is killed after the publication resumes from
        that save, and the row of its step would never be written again.

        Args:
            durable: wait until the record is on the disk, not only with the operating system.

        Raises:
            TrackError: the record cannot be written.
        """
        row, self._row = self._row, {}
        if row and self._record is not None:
            self._record.log(row, step=self._step, tokens=self._tokens)
        if durable and self._record is not None:
            self._record.sync()
        if row:
            self.log_views(row, step=self._step, tokens=self._tokens)

    def log_views(self, values: Mapping[str, float], *, step: int, tokens: int) -> None:
        """Shows values that have a record of their own (`probes.jsonl`), without adding them to the row."""
        self._each(lambda view: view.log(values, step=step, tokens=tokens))

    def event(self, kind: str, *, step: int | None = None, **fields: Any) -> None:
        """Records and shows something that happened, at once and durably.

        Args:
            kind: `resume`, `save`, `skip`, `fault`, …
            step: when; the step of the last value by default.
            fields: plain JSON values.

        Raises:
            TrackError: the record cannot be written.
        """
        at = self._step if step is None else step
        if self._record is not None:
            self._record.event(kind, fields, step=at)
        self._each(lambda view: view.event(kind, fields, step=at))

    def warn(self, kind: str, warning: str, *, step: int, **fields: Any) -> None:
        """Records and shows an event that the user should act on or know of, and prints it on stderr.

        Args:
            kind: of the event, as in `event`.
            warning: whole sentences; the event's field of this name. W&B sends it as an alert.
            step: when.
            fields: further plain JSON values.

        Raises:
            TrackError: the record cannot be written.
        """
        if self._record is not None:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        self.event(kind, step=step, warning=warning, **fields)

    def close(self) -> None:
        """Commits what is gathered and closes every sink; safe to call again."""
        try:
            self.commit()
            self._each(lambda view: view.close())
        finally:
            self._views.clear()
            if self._record is not None:
                self._record.close()
                self._record = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add_view(self, view: Sink, info: RunInfo) -> None:
        """Opens a view and feeds it from now on; one that cannot be opened is reported and left out."""
        self._views.append(view)
        self._guarded(view, lambda opening: opening.open(info))

    def _each(self, call: Callable[[Sink], None]) -> None:
        for view in list(self._views):
            self._guarded(view, call)

    def _guarded(self, view: Sink, call: Callable[[Sink], None]) -> None:
        try:
            call(view)
        except Exception as error:  # noqa: BLE001 – whatever a third-party client raises, training goes on
            self._disable(view, error)

    def _disable(self, view: Sink, error: Exception) -> None:
        self._views.remove(view)
        with contextlib.suppress(Exception):  # It is broken already, and its cause is reported below.
            view.close()
        name, cause = type(view).__name__.removesuffix("Sink").lower(), f"{type(error).__name__}: {error}"
        goes_on = "Training and metrics.jsonl go on" if self._record is not None else "What is on disk is complete"
        print(f"warning: the {name} view is switched off: {cause}. {goes_on} without it.", file=sys.stderr, flush=True)
        self.event("sink_disabled", sink=name, cause=cause)


def build_tracker(config: TrackConfig, info: RunInfo, *, rank: int = 0) -> Tracker:
    """The tracker of this process: the record and the configured views on rank 0, nothing elsewhere.

    Args:
        config: which views.
        info: static facts of the run.
        rank: global rank of this process.

    Raises:
        TrackError: the record cannot be opened.
        ConfigError: `track.console.every` is not a duration.
    """
    if rank != 0:
        return Tracker()
    views: list[Sink] = []
    if config.console.enabled:
        from pretrain.track.console import ConsoleSink

        views.append(ConsoleSink(config.console))
    record = JsonlSink()
    record.open(info)
    return _with_views(Tracker(record), [*views, *_lasting_views(config)], info)


def reopen_views(config: TrackConfig, info: RunInfo) -> Tracker:
    """W&B and TensorBoard of a run whose training has left, for what comes late; without the record.

    Args:
        config: which views.
        info: static facts of the run.
    """
    return _with_views(Tracker(), _lasting_views(config), info)


def _lasting_views(config: TrackConfig) -> list[Sink]:
    """The configured views that keep what they are given, and can be opened again."""
    views: list[Sink] = []
    if config.wandb.enabled:
        from pretrain.track.wandb import WandbSink

        views.append(WandbSink(config.wandb))
    if config.tensorboard.enabled:
        from pretrain.track.tensorboard import TensorboardSink

        views.append(TensorboardSink())
    return views


def _with_views(tracker: Tracker, views: Sequence[Sink], info: RunInfo) -> Tracker:
    for view in views:
        tracker.add_view(view, info)
    return tracker
