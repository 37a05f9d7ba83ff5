"""Whether a law of the learning rate, fitted under one schedule, tells what another brings; beside a law in tokens.

On the OLMo ladder, whose learning rates follow from its recipe: a cosine to a tenth after as many warm-up tokens as the
model has parameters. So a run of ten times the tokens is another schedule, not a longer stretch of the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probes.dynamics.annealing import AnnealingFit, ScheduledCurve, fit_annealing
from probes.dynamics.fit_law import Prediction
from probes.dynamics.published import olmo_ladder
from probes.dynamics.single_run import fit_single_run
from probes.dynamics.table import CurveTable, Series, TaskCurve

_LADDER_SIZES = ("190M", "370M", "760M", "1B")
_REFUSED_TASKS = ("boolq", "csqa", "winogrande")
_LAST = 3


def figures(*, quick: bool) -> dict[str, Any]:
    """Relative errors of predicted ends, and how many of them the 80% intervals hold.

    Args:
        quick: fewer resampled fits, and of the ladder's curves C4 alone.
    """
    draws = 30 if quick else 60
    return {
        "ladder": {
            f"5xC and 10xC, {name}, from 1xC, 2xC and 30% of itself": row
            for name, row in _ladder(olmo_ladder(), draws=draws, all_tasks=not quick).items()
        },
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| relative error of a run's end | ends | law of the learning rate | law in tokens | last value | 80% hold |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in figures["ladder"].items():
        cells = (f"{row[key]:.2%}" if row[key] is not None else "–" for key in ("annealing", "tokens", "last"))
        lines.append(f"| {name} | {row['asked']} | {' | '.join(cells)} | {row['coverage']:.2f} |")
    return "\n".join(lines)


def ladder_curve(table: CurveTable, run: str, series: Series, *, seen: float = 1.0) -> ScheduledCurve:
    """A run of the ladder up to a share of its tokens, with the learning rates of its recipe relative to the peak."""
    curve, parameters = table.get(run, series), table.runs[run].parameters
    assert curve is not None and parameters is not None, run
    steps = int(curve.step_C[-1])
    warmup = parameters / (curve.tokens_C[-1] / steps)
    step_S = np.arange(1, steps + 1)
    fall_S = 0.1 + 0.45 * (1 + np.cos(np.pi * (step_S - warmup) / (steps - warmup)))
    rate_S = np.where(step_S < warmup, step_S / warmup, fall_S)
    return ScheduledCurve(curve=curve.until(seen * curve.tokens_C[-1]), rate_S=rate_S)


def _ladder(table: CurveTable, *, draws: int, all_tasks: bool) -> dict[str, Any]:
    """The ends of the ladder's long runs from the short ones of the same size and their own beginning."""
    losses = [series for series in table.series() if series.metric in ("bpb", "ce_loss")]
    kinds = {"C4 loss": [series for series in losses if series.metric == "ce_loss"]}
    if all_tasks:
        kinds["bits per byte"] = [
            series for series in losses if series.metric == "bpb" and not series.task.startswith(_REFUSED_TASKS)
        ]
    rows = {}
    for name, chosen in kinds.items():
        found = []
        for series in chosen:
            for size in _LADDER_SIZES:
                shorter = [ladder_curve(table, f"{size}-{length}xC", series) for length in (1, 2)]
                for length in (5, 10):
                    run = f"{size}-{length}xC"
                    own, whole = ladder_curve(table, run, series, seen=0.3), ladder_curve(table, run, series)
                    fit = fit_annealing([*shorter, own], draws=draws)
                    found.append(_judged(fit, own.curve, whole))
        rows[name] = _summary(found)
    return rows


def _judged(fit: AnnealingFit, known: TaskCurve, whole: ScheduledCurve) -> dict[str, float | None]:
    """Relative errors at the end of a run, the mean of its last checkpoints; None where a fit is refused."""
    came = float(whole.curve.value_C[-_LAST:].mean())
    step, tokens = int(whole.curve.step_C[-1]), float(whole.curve.tokens_C[-1])
    in_tokens = fit_single_run(known, draws=0)
    row: dict[str, float | None] = {
        "annealing": None,
        "holds": None,
        "tokens": None,
        "last": float(known.value_C[-_LAST:].mean()) / came - 1,
    }
    at = fit.place(whole.rate_S, step, parameters=whole.parameters)
    if fit.fit.why_not(at) is None:
        found: Prediction = fit.fit.predict(at)
        row |= {"annealing": found.value / came - 1, "holds": float(found.low <= came <= found.high)}
    if in_tokens.why_not({"tokens": tokens}) is None:
        row["tokens"] = in_tokens.predict({"tokens": tokens}).value / came - 1
    return row


def _summary(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    def mean(key: str) -> float | None:
        known = [abs(row[key]) for row in rows if row[key] is not None]
        return float(np.mean(known)) if known else None

    answered = [row["holds"] for row in rows if row["holds"] is not None]
    return {
        **{key: mean(key) for key in ("annealing", "tokens", "last")},
        "coverage": float(np.mean(answered)) if answered else None,
        "asked": len(rows),
        "refused": {key: sum(row[key] is None for row in rows) for key in ("annealing", "tokens")},
    }
