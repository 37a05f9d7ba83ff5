"""First and last score of every task and metric, as plain text for the terminal and as HTML for the page.

The change is also given in units of its standard error: it tells growth from noise. Both scores are taken
as independent, though they share their items, so the true error is smaller: the number is conservative.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from probes.dynamics.metrics import is_lower_better
from probes.report.curves import MEAN_TASK, Curve, leading_metrics
from probes.report.run_files import read_run

_CLEAR_IN_STDERR = 2.0
_TERMINAL_METRICS = ("acc", "gold_bpb")  # one that everybody knows, one that moves early; the page has the rest


def summary_table(run_dir: Path) -> str:
    """The first and last scores of a run, for a terminal.

    Args:
        run_dir: a run directory.

    Returns:
        Lines of text without a final newline; one line that says so if the run has no probes.

    Raises:
        ReportError: not a run directory.
    """
    everything = read_run(run_dir).curves
    leading = [metric for metric in leading_metrics(everything) if metric in _TERMINAL_METRICS]
    curves = [curve for curve in everything if curve.metric in (leading or leading_metrics(everything))]
    if not curves:
        return "No probes yet: probes.jsonl is missing or empty."
    first, last = _span(curves)
    header = ["domain", "task", "metric", f"step {first}", f"step {last}", "change", "in SE"]
    body = [[curve.domain, curve.label, curve.metric, *_numbers(curve)] for curve in curves]
    widths = [max(len(row[column]) for row in [header, *body]) for column in range(len(header))]
    lines = []
    domain = ""
    for row in [header, *body]:
        shown = [row[0] if row[0] != domain else "", *row[1:]]
        domain = row[0]
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(shown, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def html_table(curves: Sequence[Curve]) -> str:
    """The same as an HTML table; empty without curves."""
    if not curves:
        return ""
    first, last = _span(curves)
    rows = []
    for domain in dict.fromkeys(curve.domain for curve in curves):
        members = [curve for curve in curves if curve.domain == domain]
        rows.append(f'<tr class="domain"><th scope="rowgroup" colspan="7">{html.escape(domain)}</th></tr>')
        labels = list(dict.fromkeys(curve.label for curve in members))
        rows += [_html_row(curve) for label in labels for curve in members if curve.label == label]
    return (
        "<table><thead><tr>"
        '<th scope="col">Task</th><th scope="col">Metric</th>'
        f'<th scope="col" class="number">Step {first:,}</th><th scope="col" class="number">Step {last:,}</th>'
        '<th scope="col" class="number">Change<span class="verdict"></span></th>'
        '<th scope="col" class="number">in SE</th>'
        '<th scope="col" class="number">Items</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _html_row(curve: Curve) -> str:
    before, after, change, in_stderr = _numbers(curve)
    measured = curve.change.in_stderr
    clear = measured is not None and abs(measured) >= _CLEAR_IN_STDERR
    improved = (curve.change.difference < 0) == is_lower_better(curve.metric)
    verdict = f' class="number {"better" if improved else "worse"}"' if clear else ' class="number"'
    mark = ("better" if improved else "worse") if clear else ""
    items = f"{curve.num_items:,}" if curve.num_items else "–"
    mean = ' class="mean"' if curve.task == MEAN_TASK else ""
    return (
        f'<tr{mean}><th scope="row">{html.escape(curve.label)}</th><td>{html.escape(curve.metric)}</td>'
        f'<td class="number">{before}</td><td class="number">{after}</td>'
        f'<td{verdict}>{change}<span class="verdict">{mark}</span></td>'
        f'<td class="number">{in_stderr}</td><td class="number">{items}</td></tr>'
    )


def _numbers(curve: Curve) -> list[str]:
    """First, last, change, change in standard errors; a dash for what a single score cannot tell."""
    first, last, change = curve.points[0], curve.points[-1], curve.change
    if len(curve.points) == 1:
        return ["–", f"{last.value:.3f}", "–", "–"] if last.step else [f"{first.value:.3f}", "–", "–", "–"]
    in_stderr = "–" if change.in_stderr is None else f"{change.in_stderr:+.1f}"
    return [f"{first.value:.3f}", f"{last.value:.3f}", f"{change.difference:+.3f}", in_stderr]


def _span(curves: Sequence[Curve]) -> tuple[int, int]:
    """First and last step measured."""
    steps = [point.step for curve in curves for point in (curve.points[0], curve.points[-1])]
    return min(steps), max(steps)
