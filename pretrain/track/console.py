"""What a person sees while a run goes: a progress bar on a terminal, plain lines in a file.

The only file that imports rich, and only on a terminal: lines for files hold no control characters.
Scores come as one line per save. Nothing is computed here but the time left.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from pretrain.config.track import ConsoleConfig
from pretrain.track import names
from pretrain.track.legible import legible_count, legible_seconds
from pretrain.track.sink import RunInfo
from pretrain.units import Duration

_QUIET_EVENTS = frozenset({"start", "end", "plan", "probe_plan", "probe"})
_SHOWN_PROBE_METRICS = ("acc", "acc_norm", "gold_bpb")
_PROBE_LABELS = {"gold_bpb": "bpb"}


class ConsoleSink:
    """Progress of a run for people.

    Args:
        config: how often a plain line is written.
        stream: where to; standard output by default.
    """

    def __init__(self, config: ConsoleConfig, stream: TextIO | None = None) -> None:
        self._every = Duration.parse(config.every, key="track.console.every")
        self._stream = stream if stream is not None else sys.stdout
        self._bar: _Bar | None = None
        self._shown_multiple = 0
        self._total_steps = 0
        self._first_step: int | None = None
        self._started_at = 0.0

    def open(self, info: RunInfo) -> None:
        """Shows where the run stands; starts the bar where the stream is a terminal."""
        self._total_steps = info.total_steps
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _Bar(self._stream, total_steps=info.total_steps, step=max(0, info.resume_step))

    def log(self, values: Mapping[str, float], *, step: int, tokens: int) -> None:
        """Moves the bar, or writes a line if one is due; scores and validation are always shown."""
        training = names.TRAIN_LOSS in values
        if training and self._first_step is None:
            self._first_step, self._started_at = step, time.monotonic()
        multiple = (step if self._every.unit == "steps" else tokens) // max(1, self._every.count)
        due = step in (self._first_step, self._total_steps) or multiple > self._shown_multiple
        if training and self._bar is not None:
            self._bar.advance(step, _training_text(values))
        elif training and due:
            left = f"  {self._time_left(step)}" if step < self._total_steps else ""
            self._line(f"step {step}/{self._total_steps}  {_training_text(values)}{left}")
            self._shown_multiple = multiple
        for text in (_validation_text(values), _probe_text(values)):
            if text:
                self._line(f"step {step}  {text}")

    def event(self, kind: str, fields: Mapping[str, Any], *, step: int) -> None:
        """Writes a line, but for events whose content is shown elsewhere; warnings are on stderr already."""
        if kind in _QUIET_EVENTS:
            return
        if kind == "state":
            if fields.get("unknown_since", step) == step:  # `unknown` is said once, when it begins
                self._line(f"step {step}  state  {fields['verdict']}: {fields['reason']}")
            return
        details = "  ".join(f"{name}={_short(value)}" for name, value in fields.items() if name != "warning")
        self._line(f"step {step}  {kind.replace('_', ' ')}  {details}".rstrip())

    def close(self) -> None:
        """Removes the bar; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, text: str) -> None:
        text = "".join(character if character.isprintable() else " " for character in text)
        if self._bar is not None:
            self._bar.print(text)
        else:
            print(text, file=self._stream, flush=True)

    def _time_left(self, step: int) -> str:
        """Estimate from the whole time since the first row, pauses for saves and probes included."""
        done = step - (self._first_step or 0)
        if done < 1:
            return "time left unknown"
        seconds = (time.monotonic() - self._started_at) / done * (self._total_steps - step)
        return f"{legible_seconds(seconds)} left"


class _Bar:
    """A rich progress bar that lines can be printed above."""

    def __init__(self, stream: TextIO, *, total_steps: int, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(file=stream, highlight=False),
            refresh_per_second=4,
            speed_estimate_period=120.0,
            expand=True,
        )
        self._task = self._progress.add_task("step", total=total_steps, completed=step, figures="")
        self._progress.start()

    def advance(self, step: int, figures: str) -> None:
        self._progress.update(self._task, completed=step, figures=figures)

    def print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def _training_text(values: Mapping[str, float]) -> str:
    """Loss, learning rate, gradient norm, speed and MFU, as far as present."""
    shown = []
    for name, render in (
        (names.TRAIN_LOSS, lambda value: f"loss {value:.4f}"),
        (names.TRAIN_LEARNING_RATE, lambda value: f"lr {value:.2e}"),
        (names.TRAIN_GRAD_NORM, lambda value: f"grad {value:.2f}"),
        (names.PERF_TOKENS_PER_SECOND, lambda value: f"{_count(value)} tokens/s"),
        (names.PERF_MFU, lambda value: f"mfu {100 * value:.1f}%"),
    ):
        value = values.get(name)
        if value is not None:
            shown.append(render(float(value)))
    return "  ".join(shown)


def _count(value: float) -> str:
    return legible_count(value) if math.isfinite(value) else str(value)


def _validation_text(values: Mapping[str, float]) -> str:
    shown = []
    for name, value in values.items():
        parsed = names.parse_validation_name(name)
        if parsed is not None and parsed[1] == "loss":
            bits = values.get(names.validation_bits_per_byte(parsed[0]))
            shown.append(f"{parsed[0]} {value:.4f}" + (f" ({bits:.3f} bits/byte)" if bits is not None else ""))
    return "validation  " + "  ".join(shown) if shown else ""


def _probe_text(values: Mapping[str, float]) -> str:
    """Mean per domain of the metrics a reader knows; of the tasks' values where no mean is given."""
    tasks: dict[tuple[str, str], list[float]] = {}
    means: dict[tuple[str, str], float] = {}
    for name, value in values.items():
        parsed = names.parse_probe_name(name)
        if parsed is None or parsed.metric not in _SHOWN_PROBE_METRICS:
            continue
        key = (parsed.domain, parsed.metric)
        tasks.setdefault(key, []).append(float(value))
        if parsed.task == "mean":
            means[key] = float(value)
    shown: dict[str, list[str]] = {}
    for (domain, metric), scores in tasks.items():
        score = means.get((domain, metric), sum(scores) / len(scores))
        shown.setdefault(domain, []).append(f"{_PROBE_LABELS.get(metric, metric)} {score:.3f}")
    return "probes  " + "   ".join(f"{domain} {' '.join(scores)}" for domain, scores in shown.items()) if shown else ""


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
