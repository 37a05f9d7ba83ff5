"""The figures of a report, as plain plotly specifications: which curves, on which axes, in which colours.

Colours are Okabe and Ito's, told apart under all forms of colour blindness; every curve is labelled at its
end instead of in a legend. plotly itself is only needed to show them; `html.py` embeds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.track import names
from pretrain.track.legible import legible_count, legible_seconds
from probes.dynamics.metrics import ACCURACIES, is_accuracy
from probes.report.axis import TokenAxis
from probes.report.curves import MEAN_TASK, METRIC_TITLES, Curve, Point, chance_of, leading_metrics
from probes.report.layout import INK, MUTED, PALETTE, Label, Panel, base_layout, end_labels, panel_title, y_axis
from probes.report.run_files import RunFiles
from probes.report.traces import marked_line, plain_line, smoothed, thinned, within

_MOST_LABELLED_TASKS = 7
_MOST_BANDS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of the page.

    Attributes:
        title: heading.
        unit: what the y axis counts; shown beside the heading.
        description: what the figure shows, in words, for those who do not see it.
        data: plotly traces.
        layout: plotly layout.
        linear_range: range of the token axis when shown linear; None without a token axis.
        wide: takes the full width of the page.
        places: for a figure whose x axis can be switched: of each further axis, by its key, the `xaxis` of its layout
            and the `x` of each trace, a list or a factor of the tokens.
    """

    title: str
    unit: str
    description: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    linear_range: list[float] | None = None
    wide: bool = False
    places: dict[str, Any] | None = None


_MOVES_EARLY = "gold_bpb"
_ABILITIES = {True: "Bits per byte of right answers", False: "Mean accuracy per domain"}


def token_axis(run: RunFiles) -> TokenAxis:
    """The axis all figures of a run share."""
    measured = [point.tokens for curve in run.curves for point in curve.points]
    return TokenAxis.spanning([row["tokens"] for row in run.rows] + measured, tokens_per_step=run.tokens_per_step)


def headline(run: RunFiles, axis: TokenAxis) -> Figure | None:
    """Training loss above, abilities per domain below, over the same tokens; None without a loss.

    Abilities are bits per byte of the right answers where they were measured, since these move at every size and from
    the first step, and accuracies where not.
    """
    loss = run.metric(names.TRAIN_LOSS)
    if not loss:
        return None
    moving = [curve for curve in run.curves if curve.metric == _MOVES_EARLY]
    means = moving or [curve for metric in ACCURACIES for curve in run.curves if curve.metric == metric]
    seen: set[str] = set()
    chosen = []
    for curve in sorted(means, key=lambda curve: curve.task != MEAN_TASK):
        if curve.domain not in seen:
            seen.add(curve.domain)
            chosen.append(curve)
    order = list(dict.fromkeys(curve.domain for curve in run.curves))
    chosen.sort(key=lambda curve: order.index(curve.domain))
    height = 500 if chosen else 300
    upper = Panel(height_pixels=210 if chosen else 240, domain=(0.54, 1.0) if chosen else (0.0, 1.0))
    lower = Panel(height_pixels=200, domain=(0.0, 0.44), axis="y2")
    smooth = smoothed(loss)
    data = [
        plain_line(thinned(loss), axis, name="each step", colour="#9CC7E3", width=1),
        plain_line(thinned(smooth), axis, name="training loss", colour=PALETTE[0], width=2.4),
    ]
    loss_range = _value_range([point.value for point in smooth] + within([p.value for p in loss]))
    labels = end_labels(
        [Label(f"loss {smooth[-1].value:.2f}", smooth[-1].value, PALETTE[0])], value_range=loss_range, panel=upper
    )
    layout = {"yaxis": y_axis(loss_range, panel=upper)}
    titles = [panel_title("Training loss, nats per token", upper)] if chosen else []
    if chosen:
        score_range = _value_range([value for curve in chosen for value in _with_errors(curve.points)])
        layout["yaxis2"] = y_axis(score_range, panel=lower)
        ends = []
        for position, curve in enumerate(chosen):
            colour = PALETTE[(position + 1) % len(PALETTE)]
            data += marked_line(
                curve.points, axis, name=curve.domain, colour=colour, band=len(chosen) <= _MOST_BANDS, on="y2"
            )
            ends.append(Label(curve.domain, curve.points[-1].value, colour))
        labels += end_labels(ends, value_range=score_range, panel=lower)
        titles.append(panel_title(_ABILITIES[bool(moving)], lower))
    described = [f"Training loss goes from {loss[0].value:.2f} to {smooth[-1].value:.2f} nats per token."]
    described += [f"{curve.domain}: {_ends_in_words(curve.points)}." for curve in chosen]
    return Figure(
        title="Loss and abilities side by side" if chosen else "Training loss",
        unit="" if chosen else "nats per token",
        description=" ".join(described),
        data=data,
        layout=base_layout(axis, annotations=labels + titles, height=height, below="y2" if chosen else "y") | layout,
        linear_range=axis.linear_range(),
        wide=True,
    )


def probe_figures(run: RunFiles, axis: TokenAxis, domain: str) -> list[Figure]:
    """One figure per metric of a domain: tasks, their mean, ±1 standard error, and the level of guessing."""
    of_domain = [curve for curve in run.curves if curve.domain == domain]
    metrics = leading_metrics(of_domain)
    return [
        _probe_figure(
            [curve for curve in of_domain if curve.metric == metric],
            axis,
            chance=run.chance if is_accuracy(metric) else {},
        )
        for metric in metrics
    ]


def validation_figures(run: RunFiles, axis: TokenAxis) -> list[Figure]:
    """Validation loss per domain, in nats per token and in bits per byte."""
    return [
        _lines_figure(run.validation(quantity), axis, title=title, unit=unit, marks=True)
        for quantity, title, unit in (
            ("loss", "Validation loss", "nats per token"),
            ("bits_per_byte", "Validation loss per byte", "bits per byte"),
        )
        if run.validation(quantity)
    ]


def health_figures(run: RunFiles, axis: TokenAxis) -> list[Figure]:
    """Gradient norm, learning rate, throughput and utilisation."""
    return [
        _lines_figure({"": points}, axis, title=title, unit=unit)
        for name, title, unit in (
            (names.TRAIN_GRAD_NORM, "Gradient norm", "before clipping"),
            (names.TRAIN_LEARNING_RATE, "Learning rate", ""),
            (names.PERF_TOKENS_PER_SECOND, "Throughput", "tokens per second"),
            (names.PERF_MFU, "Model FLOPs utilisation", "share of peak"),
        )
        if (points := run.metric(name))
    ]


def time_spent(run: RunFiles) -> dict[str, float]:
    """Seconds per activity, of those that are known; what a crash lost is not in it."""

    def total(name: str) -> float:
        return sum(point.value for point in run.metric(name))

    seconds = {
        "training": total(names.TIME_TRAINING_SECONDS) or total(names.PERF_STEP_SECONDS),
        "validation": total(names.TIME_VALIDATION_SECONDS),
        "probing": total(names.TIME_PROBING_SECONDS) or run.event_seconds("probe") or sum(run.probe_seconds.values()),
        "saving": total(names.TIME_SAVING_SECONDS) or run.event_seconds("save"),
    }
    return {activity: spent for activity, spent in seconds.items() if spent > 0}


def time_figure(run: RunFiles) -> Figure | None:
    """Where the wall time went; None if nothing is known of it."""
    spent = time_spent(run)
    return _bars("Time spent", "wall time", spent, legible_seconds) if spent else None


def source_figure(run: RunFiles) -> Figure | None:
    """Tokens consumed per source; None for a run with fewer than two."""
    last = run.rows[-1] if run.rows else {}
    consumed = {
        name.split("/", 1)[1].removesuffix("/tokens"): float(value)
        for name, value in last.items()
        if name.startswith("data/") and name.endswith("/tokens") and isinstance(value, int | float)
    }
    return _bars("Data", "tokens per source", consumed, legible_count) if len(consumed) > 1 else None


def _probe_figure(curves: Sequence[Curve], axis: TokenAxis, *, chance: Mapping[str, float]) -> Figure:
    tasks = [curve for curve in curves if curve.task != MEAN_TASK]
    means = [curve for curve in curves if curve.task == MEAN_TASK and len(tasks) != 1]
    crowded = len(tasks) > _MOST_LABELLED_TASKS
    data: list[dict[str, Any]] = []
    ends: list[Label] = []
    for position, curve in enumerate(tasks):
        colour = MUTED if crowded else PALETTE[position % len(PALETTE)]
        band = len(tasks) <= _MOST_BANDS
        data += marked_line(curve.points, axis, name=curve.label, colour=colour, band=band, width=1 if crowded else 1.8)
        if not crowded:
            ends.append(Label(curve.label, curve.points[-1].value, colour))
    for curve in means:
        data += marked_line(
            curve.points, axis, name=curve.label, colour=INK, band=crowded or not tasks, width=2.6, dash="solid"
        )
        ends.append(Label(curve.label, curve.points[-1].value, INK, bold=True))
    values = [value for curve in curves for value in _with_errors(curve.points)]
    levels = sorted({round(chance[task.task], 4) for task in tasks if task.task in chance})
    lowest, highest = min(values), max(values)
    shown = [level for level in levels if lowest - 0.5 * (highest - lowest) <= level <= highest]
    value_range = _value_range(values + shown)
    ends += [Label(f"guessing {100 * level:.0f} %", level, MUTED, mark="┈") for level in shown]
    panel = Panel(height_pixels=210)
    metric = curves[0].metric
    title = METRIC_TITLES.get(metric, metric)
    guessing = chance_of(tasks, chance)
    described = [f"{curve.label}: {_ends_in_words(curve.points)}." for curve in (means or tasks)]
    if guessing is not None:
        described.append(f"Guessing would score {guessing:.2f} on average.")
    layout = base_layout(axis, annotations=end_labels(ends, value_range=value_range, panel=panel))
    return Figure(
        title=title,
        unit=metric if title != metric else "",
        description=f"{title} on {curves[0].domain}. " + " ".join(described),
        data=data,
        layout=layout | {"yaxis": y_axis(value_range, panel=panel), "shapes": [_chance_line(level) for level in shown]},
        linear_range=axis.linear_range(),
    )


def _lines_figure(
    lines: Mapping[str, Sequence[Point]],
    axis: TokenAxis,
    *,
    title: str,
    unit: str,
    marks: bool = False,
) -> Figure:
    data, ends = [], []
    for position, (name, points) in enumerate(lines.items()):
        colour = PALETTE[position % len(PALETTE)]
        if marks:
            data += marked_line(points, axis, name=name, colour=colour, band=False)
        else:
            data.append(plain_line(thinned(points), axis, name=title, colour=colour, width=1.4))
        if name:
            ends.append(Label(name, points[-1].value, colour))
    panel = Panel(height_pixels=210)
    value_range = _value_range([point.value for points in lines.values() for point in points])
    described = " ".join(f"{name or title}: {_ends_in_words(points)}." for name, points in lines.items())
    return Figure(
        title=title,
        unit=unit,
        description=described,
        data=data,
        layout=base_layout(axis, annotations=end_labels(ends, value_range=value_range, panel=panel))
        | {"yaxis": y_axis(value_range, panel=panel)},
        linear_range=axis.linear_range(),
    )


def _bars(title: str, unit: str, values: Mapping[str, float], render: Any) -> Figure:
    whole = sum(values.values()) or 1.0
    texts = [f"{render(value)}  ({100 * value / whole:.1f} %)" for value in values.values()]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": list(values.values()),
        "y": list(values),
        "text": texts,
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": [PALETTE[position % len(PALETTE)] for position in range(len(values))]},
        "hoverinfo": "skip",
    }
    layout = base_layout(None, annotations=[], height=60 + 34 * len(values)) | {
        "xaxis": {"visible": False, "range": [0, 1.75 * max(values.values())], "fixedrange": True},
        "yaxis": {"autorange": "reversed", "automargin": True, "fixedrange": True, "ticks": ""},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "bargap": 0.35,
    }
    described = ", ".join(f"{name} {text}" for name, text in zip(values, texts, strict=True))
    return Figure(title=title, unit=unit, description=f"{title}: {described}.", data=[trace], layout=layout)


def _with_errors(points: Sequence[Point]) -> list[float]:
    return [point.value + sign * (point.stderr or 0.0) for point in points for sign in (-1, 1)]


def _value_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _ends_in_words(points: Sequence[Point]) -> str:
    if len(points) == 1:
        return f"{points[0].value:.4g} at step {points[0].step}"
    return f"from {points[0].value:.4g} at step {points[0].step} to {points[-1].value:.4g} at step {points[-1].step}"


def _chance_line(level: float) -> dict[str, Any]:
    line = {"color": MUTED, "width": 1.2, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "line": line, "layer": "below"}
