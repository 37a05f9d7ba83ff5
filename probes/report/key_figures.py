"""The numbers at the head of a report, and the sentence that says how far the run is.

Each is left out where the run does not tell it. What is shown here is rounded; the record is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from pretrain.track import names
from pretrain.track.legible import legible_count, legible_seconds
from probes.report.curves import MEAN_TASK, Curve
from probes.report.figures import time_spent
from probes.report.run_files import RunFiles

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One number with its name, and perhaps a detail below."""

    name: str
    value: str
    detail: str = ""


def status(run: RunFiles) -> str:
    """Whether the run is done, and else where it stands."""
    if not run.rows:
        return "No step has been logged yet."
    step, total = run.rows[-1]["step"], run.total_steps
    if total is None:
        return f"At step {step:,}."
    if step >= total:
        return f"Finished: {step:,} of {total:,} steps."
    return f"In progress or interrupted: step {step:,} of {total:,}, {100 * step / total:.0f} %."


def key_figures(run: RunFiles) -> list[KeyFigure]:
    """Size, length, cost and outcome of the run, as far as known."""
    found = []
    if run.parameters:
        found.append(KeyFigure("Parameters", legible_count(run.parameters)))
    if run.rows and run.rows[-1]["tokens"]:
        tokens = run.rows[-1]["tokens"]
        per_parameter = f"{tokens / run.parameters:.3g} per parameter" if run.parameters else ""
        found.append(KeyFigure("Tokens", legible_count(tokens), per_parameter))
    flops = run.metric(names.FLOPS)
    if flops and flops[-1].value > 0:
        found.append(KeyFigure("Compute", _power_of_ten(flops[-1].value), "FLOPs"))
    loss = run.metric(names.TRAIN_LOSS)
    if loss:
        tail = loss[-max(1, len(loss) // 50) :]
        detail = f"nats per token, mean of {len(tail)} steps" if len(tail) > 1 else "nats per token"
        found.append(KeyFigure("Training loss", f"{mean(point.value for point in tail):.3f}", detail))
    accuracy = _accuracy(run.curves)
    if accuracy is not None:
        before, after = accuracy
        found.append(KeyFigure("Mean accuracy", f"{100 * after:.1f} %", f"from {100 * before:.1f} % at first"))
    spent = sum(time_spent(run).values())
    if spent:
        probing = time_spent(run).get("probing", 0.0)
        found.append(
            KeyFigure("Time", legible_seconds(spent), f"{100 * probing / spent:.1f} % probing" if probing else "")
        )
    speed = run.metric(names.PERF_TOKENS_PER_SECOND)
    if speed:
        found.append(KeyFigure("Speed", legible_count(median(point.value for point in speed)), "tokens per second"))
    return found


def _accuracy(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """First and last accuracy, as the mean over domains of their mean over tasks; None unless all have both."""
    of_domain: dict[str, Curve] = {}
    for curve in curves:
        if curve.metric == "acc" and (curve.domain not in of_domain or curve.task == MEAN_TASK):
            of_domain[curve.domain] = curve
    if not of_domain or any(len(curve.points) < 2 for curve in of_domain.values()):
        return None
    chosen = list(of_domain.values())
    return mean(curve.points[0].value for curve in chosen), mean(curve.points[-1].value for curve in chosen)


def _power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
