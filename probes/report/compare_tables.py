"""The tables and the legend of a comparison, as HTML; long tables are cut, and say so.

Row types that are only shown in tables are here, those that are drawn, too, in `compare_intervals.py`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.track.legible import legible_count
from probes.dynamics.beside_original import ABOVE, BELOW, WITHIN, Beside
from probes.dynamics.table import CurveTable
from probes.report.compare_curves import Panel
from probes.report.compare_figures import OTHER_COLOUR, OTHERS, Style
from probes.report.compare_intervals import OnsetRow, PredictionRow
from probes.report.page import note_below, scroll

MOST_ROWS = 60
_MOST_DOMAINS = 8
_MOST_NAMED = 12
_BESIDE = {
    WITHIN: "within noise",
    ABOVE: '<span class="better">above</span>',
    BELOW: '<span class="worse">below</span>',
}
_DASH_PATTERNS = {"solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"}
_MARKER_SHAPES = {
    "circle": '<circle cx="17" cy="7" r="3.6"/>',
    "square": '<rect x="13.6" y="3.6" width="6.8" height="6.8"/>',
    "diamond": '<path d="M17 2.4 21.6 7 17 11.6 12.4 7Z"/>',
    "triangle-up": '<path d="M17 2.6 21.2 10.4 12.8 10.4Z"/>',
    "x": '<path d="M13.6 3.6 20.4 10.4M20.4 3.6 13.6 10.4" stroke-width="2.4"/>',
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustRow:
    """Whether one metric of one task can be trusted in one run.

    Attributes:
        run: the run.
        label: the task.
        metric: of the task.
        domain: of the task.
        trusted: whether it can.
        decays: whether it has fallen from its best by more than its noise.
        watched: its place among the few recommended, from 0; None if it is not.
        above_chance: standard errors above chance; None without chance.
        monotonicity: Spearman's correlation with time; None if unknown.
        gain: rise in units of its noise; None if unknown.
        reason: why, in words.
    """

    run: str
    label: str
    metric: str
    domain: str
    trusted: bool
    decays: bool
    watched: int | None
    above_chance: float | None
    monotonicity: float | None
    gain: float | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarityRow:
    """How alike a task behaves in runs of different sizes.

    Attributes:
        label: the task.
        metric: of the task.
        axis: by what the runs were aligned.
        value: the similarity; 1 is alike.
        low: lower end of its interval; None if unknown.
        high: upper end; None if unknown.
        ceiling: the same between runs of one size; None without such runs.
        note: what else is to be said.
    """

    label: str
    metric: str
    axis: str
    value: float
    low: float | None
    high: float | None
    ceiling: float | None
    note: str = ""


def legend(styles: Mapping[str, Style], *, num_others: int) -> str:
    """A button for each run in colour, which hides and shows it in all figures, and one for all others."""
    buttons = [_button(run, _swatch(style), html.escape(run)) for run, style in styles.items()]
    if num_others:
        grey = Style(OTHER_COLOUR, "solid", "")
        buttons.append(_button(OTHERS, _swatch(grey), f"{num_others} {OTHERS}"))
    return f'<div class="legend" role="group" aria-label="Runs shown">{"".join(buttons)}</div>'


def runs_table(table: CurveTable, runs: Sequence[str], panels: Sequence[Panel], styles: Mapping[str, Style]) -> str:
    """Size, length and latest mean score by domain of each run."""
    domains = [panel.domain for panel in panels[:_MOST_DOMAINS]]
    latest = {(curve.run, panel.domain): float(curve.value_C[-1]) for panel in panels for curve in panel.means}
    heads = [
        "Run",
        "Family",
        "#Parameters",
        "#Tokens",
        "#per parameter",
        "#FLOPs",
        *(f"#{domain}" for domain in domains),
    ]
    rows = []
    for run in runs:
        facts, seen = table.runs[run], table.last_tokens(run)
        total = "" if table.is_finished(run) else f" of {legible_count(facts.total_tokens or 0)}"
        flops = float(facts.flops(np.array([seen]))[0])
        name = (_swatch(styles[run]) if run in styles else "") + html.escape(run)
        rows.append(
            [
                name,
                html.escape(facts.family),
                legible_count(facts.parameters) if facts.parameters else "–",
                legible_count(seen) + total,
                _ratio(seen / facts.parameters) if facts.parameters else "–",
                f"{flops:.2e}" if flops == flops else "–",
                *(number(latest.get((run, domain))) for domain in domains),
            ]
        )
    return _table(heads, rows, label="Runs")


def predictions_table(rows: Sequence[PredictionRow]) -> str:
    """Predictions with their intervals and what came, and why others are refused."""
    heads = ["Run", "Task", "Metric", "#Predicted, with 80% interval", "#What came", "Inside", "How, or why not"]
    cells = []
    for row in rows:
        inside = {None: "–", True: "yes", False: '<span class="worse">no</span>'}[row.is_inside]
        interval = "" if row.low is None or row.high is None else f" ({row.low:.3f} to {row.high:.3f})"
        cells.append(
            [
                html.escape(f"{row.run} at {legible_count(row.at_tokens)} tokens"),
                html.escape(row.label),
                html.escape(row.metric),
                number(row.value) + interval,
                number(row.came),
                inside,
                html.escape(f"refused: {row.refused}" if row.refused else row.method),
            ]
        )
    return _grouped(heads, cells, label="Predicted finals")


def onsets_table(rows: Sequence[OnsetRow]) -> str:
    """Onsets and ends of growth in tokens."""
    heads = ["Ability", "Run", "#Onset, tokens", "#80% interval", "#Grown out at", "Remark"]
    cells = [
        [
            html.escape(row.label),
            html.escape(row.run),
            _count(row.tokens),
            "–" if row.low is None or row.high is None else f"{_count(row.low)} to {_count(row.high)}",
            _count(row.saturated_tokens),
            html.escape(row.note),
        ]
        for row in rows
    ]
    return _grouped(heads, cells, label="Onsets")


def trust_matrix(rows: Sequence[TrustRow], runs: Sequence[str]) -> str:
    """A row for each metric that is trusted anywhere or decays, those trusted in most runs first; a column a run."""
    found: dict[tuple[str, str, str], dict[str, TrustRow]] = {}
    for row in rows:
        found.setdefault((row.label, row.metric, row.domain), {})[row.run] = row
    order = sorted(found, key=lambda key: -sum(row.trusted for row in found[key].values()))
    heads = ["Task", "Metric", "Domain", *runs]
    told = [key for key in order if any(row.trusted or row.decays for row in found[key].values())]
    cells = [[*map(html.escape, key), *(_verdict(found[key].get(run)) for run in runs)] for key in told]
    nowhere = [f"{label} ({metric})" for label, metric, domain in order if (label, metric, domain) not in told]
    more = f" and {len(nowhere) - _MOST_NAMED} more" if len(nowhere) > _MOST_NAMED else ""
    note = f"Trusted in none of these runs: {', '.join(nowhere[:_MOST_NAMED])}{more}." if nowhere else ""
    return (_table(heads, cells, label="Which metrics can be trusted") if told else "") + note_below(note)


def trust_table(rows: Sequence[TrustRow]) -> str:
    """The metrics to watch in each run, and those that decay, with the numbers that say so."""
    heads = [
        "Run",
        "Task",
        "Metric",
        "Domain",
        "Verdict",
        "#SE above chance",
        "#Spearman",
        "#Gain over noise",
        "Remark",
    ]
    kept = [row for row in rows if row.watched is not None or row.decays]
    if not kept:
        return '<p class="empty">Nothing can be trusted yet, and nothing decays.</p>'
    runs = list(dict.fromkeys(row.run for row in kept))
    order = sorted(kept, key=lambda row: (runs.index(row.run), row.decays, row.watched or 0))
    cells = [
        [
            html.escape(row.run),
            html.escape(row.label),
            html.escape(row.metric),
            html.escape(row.domain),
            _verdict(row) if row.decays else "watch",
            number(row.above_chance, 1),
            number(row.monotonicity, 2),
            number(row.gain, 1),
            html.escape(row.reason) if row.decays else "",
        ]
        for row in order
    ]
    return _grouped(heads, cells, label="Metrics to watch")


def similarity_table(rows: Sequence[SimilarityRow]) -> str:
    """Tasks by how alike they behave across sizes."""
    heads = ["Task", "Metric", "Aligned by", "#Similarity", "#80% interval", "#Ceiling", "Remark"]
    cells = [
        [
            html.escape(row.label),
            html.escape(row.metric),
            html.escape(row.axis.replace("_", " ")),
            number(row.value, 2),
            "–" if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}",
            number(row.ceiling, 2),
            html.escape(row.note),
        ]
        for row in rows
    ]
    return _table(heads, cells, label="Similarity across sizes", wraps=True)


def original_table(found: Beside) -> str:
    """Scores of a run beside the original's: the difference over all checkpoints, and what noise explains of it."""
    heads = ["Score", "#Latest", "#Original there", "#Mean difference", "#Of the band", "#Outside", "Verdict", "Remark"]
    cells = [
        [
            html.escape(str(task.series)),
            number(float(task.value_K[-1])),
            number(float(task.original_K[-1])),
            f"{task.mean_difference:+.3f}",
            f"{task.in_bands:+.2f}",
            f"{task.outside} of {len(task.tokens_K)}",
            _BESIDE[task.verdict],
            html.escape("; ".join(task.remarks)),
        ]
        for task in found.tasks
    ]
    unknown = ["–"] * 6
    cells += [
        [html.escape(str(series)), *unknown, html.escape(f"not compared: {reason}")]
        for series, reason in found.refused.items()
    ]
    return _table(heads, cells, label=f"{found.run} beside {found.original.title}", wraps=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many decimals, or a dash."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def _verdict(row: TrustRow | None) -> str:
    if row is None:
        return "–"
    if row.decays:
        return '<span class="worse">decays</span>'
    return '<span class="better">yes</span>' if row.trusted else "no"


def _ratio(value: float) -> str:
    return legible_count(value) if value >= 1000 else f"{value:.3g}"


def _count(tokens: float | None) -> str:
    return "–" if tokens is None else legible_count(tokens)


def _grouped(heads: Sequence[str], rows: Sequence[Sequence[str]], *, label: str) -> str:
    """A table whose first column, which comes in runs of equal cells, stands as headings between the rows."""
    return _table(heads[1:], [row[1:] for row in rows], label=label, wraps=True, groups=[row[0] for row in rows])


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    label: str,
    wraps: bool = False,
    groups: Sequence[str] = (),
) -> str:
    """A table of HTML cells; a heading that begins with # is of a column of numbers; a long table is cut."""
    classes = [' class="number"' if head.startswith("#") else "" for head in heads]
    if wraps:
        classes[-1] = ' class="words"'
    top = "".join(
        f'<th scope="col"{css}>{html.escape(head.lstrip("#"))}</th>' for head, css in zip(heads, classes, strict=True)
    )
    body = ""
    for place, row in enumerate(rows[:MOST_ROWS]):
        if groups and (place == 0 or groups[place] != groups[place - 1]):
            body += f'<tr class="domain"><th scope="rowgroup" colspan="{len(heads)}">{groups[place]}</th></tr>'
        cells = "".join(f"<td{css}>{cell}</td>" for cell, css in zip(row[1:], classes[1:], strict=True))
        body += f'<tr><th scope="row">{row[0]}</th>{cells}</tr>'
    note = f"The first {MOST_ROWS} of {len(rows):,} rows." if len(rows) > MOST_ROWS else ""
    table = f'<table class="compact"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return scroll(table, label=label) + note_below(note)


def _button(run: str, swatch: str, text: str) -> str:
    return f'<button type="button" data-run="{html.escape(run)}" aria-pressed="true">{swatch}{text}</button>'


def _swatch(style: Style) -> str:
    """A piece of the run's line, as the figures draw it; decoration beside its name."""
    line = f'<path d="M1 7H33" stroke-dasharray="{_DASH_PATTERNS[style.dash]}" stroke-width="2.2"/>'
    marker = _MARKER_SHAPES.get(style.marker, "")
    return (
        f'<svg class="swatch" width="34" height="14" viewBox="0 0 34 14" aria-hidden="true" fill="{style.colour}" '
        f'stroke="{style.colour}">{line}{marker}</svg>'
    )
