"""Writes the comparison of several runs: one HTML file that opens anywhere, offline, with everything inside.

Here its sections are put together. Curves are made by `compare_curves.py`, drawn by `compare_figures.py` and
`compare_intervals.py`; what the analyses say comes from `compare_analysis.py`; the page around it from `page.py`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import ProbeError
from pretrain.track.legible import legible_count
from probes.dynamics.beside_original import Beside
from probes.dynamics.metrics import BITS_PER_BYTE, PLAINEST_FIRST
from probes.dynamics.originals import pairs_in
from probes.dynamics.table import LOSS_DOMAIN, CurveTable
from probes.report import compare_analysis as analysis
from probes.report.compare_curves import (
    MOST_HIGHLIGHTED,
    Axis,
    Panel,
    domain_panels,
    highlighted,
    overall,
    shared_axes,
)
from probes.report.compare_figures import Style, alignment_figures, domain_figures, styles_of
from probes.report.compare_intervals import onset_figure, prediction_figures
from probes.report.compare_original import original_section
from probes.report.compare_tables import (
    legend,
    onsets_table,
    predictions_table,
    runs_table,
    similarity_table,
    trust_matrix,
    trust_table,
)
from probes.report.page import Counter, Head, Section, note_below, render_page, tile, write_page

_MOST_PANELS = 24
_MOST_BESIDE = 4
_EMPTY = '<p class="empty">{}</p>'


@dataclass(frozen=True, slots=True)
class Comparison:
    """What every section draws from.

    Attributes:
        table: the runs that have scores.
        panels: mean scores of the domains.
        bits: mean bits per byte of the domains.
        axes: on which all runs have a place.
        missing: why other axes are not there.
        styles: of the runs in colour, by size.
        beside: runs beside originals that are in the table.
    """

    table: CurveTable
    panels: Sequence[Panel]
    bits: Sequence[Panel]
    axes: Sequence[Axis]
    missing: str
    styles: Mapping[str, Style]
    beside: Sequence[Beside] = ()

    @property
    def runs(self) -> list[str]:
        """The runs in colour, by size."""
        return list(self.styles)

    @property
    def num_others(self) -> int:
        """How many runs are drawn in grey."""
        return len(self.table.runs) - len(self.styles)


def write_comparison(table: CurveTable, output: Path) -> Path:
    """Writes the comparison of all runs of a table: `compare`, then `write`."""
    return write(compare(table), output)


def write(comparison: Comparison, output: Path) -> Path:
    """Writes the page; what was there is replaced atomically.

    Returns:
        `output`.

    Raises:
        ReportError: the file cannot be written.
    """
    table, axes = comparison.table, comparison.axes
    head = Head(
        kind="Comparison of runs",
        name=_title(table),
        status=_status(table),
        tiles=_tiles(comparison),
        switch=_axis_switch(axes),
    )
    return write_page(render_page(head, _sections(comparison)), output)


def compare(table: CurveTable, *, beside: Sequence[Beside] | None = None) -> Comparison:
    """Chooses what is compared: tasks, axes, and the runs in colour.

    Args:
        table: the runs.
        beside: runs beside their originals; those that the table has with their originals, unless given.

    Raises:
        ProbeError: there is nothing to compare.
    """
    scored = [run for run in table.runs if table.of_run(run)]
    if not scored:
        raise ProbeError("There are no scores to compare. Give runs that were probed, or tables of scores.")
    table = table.select(runs=scored)
    ranking = overall(domain_panels(table, PLAINEST_FIRST)) if len(table.runs) > MOST_HIGHLIGHTED else []
    chosen = highlighted(table, {curve.run: float(curve.value_C[-1]) for curve in ranking})
    wanted = analysis.telling(table, chosen)
    axes, missing = shared_axes(table, list(table.runs))
    return Comparison(
        table=table,
        panels=domain_panels(table, PLAINEST_FIRST, wanted=wanted)[:_MOST_PANELS],
        bits=domain_panels(table, BITS_PER_BYTE)[:_MOST_PANELS],
        axes=axes,
        missing=missing,
        styles=styles_of(chosen),
        beside=analysis.beside(table, pairs_in(table)[:_MOST_BESIDE]) if beside is None else beside,
    )


def _sections(found: Comparison) -> list[Section]:
    counter = Counter()
    sections = [
        Section("runs", "Runs", _runs(found)),
        Section("domains", "Domains", _domains(found, counter)),
        Section("alignment", "Alignment of sizes", _alignment(found, counter)),
    ]
    if found.beside:
        content = original_section(found.beside, found.styles, counter)
        sections.insert(1, Section("original", "Beside the original", content))
    predicted = analysis.predictions(found.table, found.runs)
    if predicted:
        note = (
            "Runs under way are predicted from now; finished ones from "
            f"{100 * analysis.HINDSIGHT:.0f} % of their tokens, "
            "with smaller finished runs of the family as references, and held against what came (hollow diamonds). "
            "Bars are intervals that are to hold 80 % of the scores that come."
        )
        shown = counter.show(prediction_figures(predicted, found.styles), note=note)
        sections.append(Section("predictions", "Predicted finals", shown + _spaced(predictions_table(predicted))))
    domains, tasks = analysis.onsets(found.table, found.panels, found.runs)
    if domains or tasks:
        sections.append(Section("onsets", "When abilities arise", _onsets(found, counter, domains, tasks)))
    verdicts = analysis.trust(found.table, found.runs)
    if verdicts:
        note = (
            "Trusted: above chance by three standard errors, corrected for the number of metrics; rising with time, by "
            "more than five times the noise between checkpoints; not decaying from its best."
        )
        content = trust_table(verdicts) + note_below(note) + _spaced(trust_matrix(verdicts, found.runs))
        sections.append(Section("trust", "Trust in metrics", content))
    return sections


def _runs(found: Comparison) -> str:
    shown = runs_table(found.table, found.runs, found.panels, found.styles)
    note = "Scores are means over tasks, 0 at chance and 1 for everything right. " if found.panels else ""
    if not found.num_others:
        return shown + note_below(note.strip())
    note += "In colour are runs under way and the best of each size; the others are drawn in grey."
    others = [run for run in found.table.by_size(found.table.runs) if run not in found.styles]
    table = runs_table(found.table, others, found.panels, found.styles)
    details = f"<details><summary>{len(others)} other runs</summary>{table}</details>"
    return shown + note_below(note) + _spaced(details)


def _domains(found: Comparison, counter: Counter) -> str:
    if not found.panels and not found.bits:
        return _EMPTY.format("No two runs have a task in common whose score of guessing is known.")
    parts = [legend(found.styles, num_others=found.num_others)]
    scores = domain_figures(found.table, found.panels, found.axes, found.styles)
    bits = domain_figures(found.table, found.bits, found.axes, found.styles)
    note = (
        "Means over the tasks that can be trusted in a run in colour, and that all runs shown were scored on; each is "
        "rescaled so that guessing is 0 and everything right is 1. Lines are smoothed, dots are the scores; shaded "
        "where four runs or fewer are shown: where the curve is with 80 %. Scores before training are not drawn."
    )
    if scores:
        parts += ["<h3>Mean score of each domain</h3>" if bits else "", counter.show(scores, note=note)]
    if bits:
        parts += ["<h3>Bits per byte of right answers</h3>", counter.show(bits)]
    return "".join(parts) + _tasks(found) + note_below(found.missing)


def _tasks(found: Comparison) -> str:
    """Which tasks the means are over, and which runs a panel lacks."""
    lines = []
    for panel in found.panels:
        absent = len(found.table.runs) - len(panel.means)
        lacking = f" ({absent} runs were not scored on them)" if absent else ""
        lines.append(f"<li>{html.escape(panel.domain)}: {html.escape(', '.join(panel.tasks))}{lacking}</li>")
    return (
        _spaced(f"<details><summary>Tasks of each mean</summary><ul>{''.join(lines)}</ul></details>") if lines else ""
    )


def _alignment(found: Comparison, counter: Counter) -> str:
    means = overall(found.panels)
    note = (
        "The mean of each run over all domains that can be trusted. On the axis on which runs of different sizes fall "
        "together, a smaller one tells how a larger one will go."
    )
    shown = counter.show(alignment_figures(found.table, means, found.axes, found.styles), note=note)
    parts = [legend(found.styles, num_others=found.num_others) + shown] if shown else []
    axis = "loss" if found.axes[-1].key == "loss" else "tokens"
    alike = analysis.similarities(found.table, found.runs, axis=axis)
    if alike:
        remark = (
            "Similarity of a task's curves between runs of different sizes: mean of Pearson's and Spearman's "
            "correlations of levels and of one minus their distance over their range. The ceiling is the same between "
            "runs of one size."
        )
        parts.append(_spaced(similarity_table(alike)) + note_below(remark))
    return "".join(parts) or _EMPTY.format("No two runs can be aligned: they have no tasks in common.")


def _onsets(
    found: Comparison,
    counter: Counter,
    domains: Sequence[analysis.OnsetRow],
    tasks: Sequence[analysis.OnsetRow],
) -> str:
    figures = [
        onset_figure(domains, found.styles, title="Domains"),
        onset_figure(tasks, found.styles, title="Tasks"),
    ]
    note = (
        "Dots: where growth sets in, with an 80 % interval; strokes: where it ends. The earliest is on top. What has "
        "not set in, or had before the first checkpoint, is only in the table."
    )
    shown = counter.show(figures, note=note)
    top = legend(found.styles, num_others=0) + shown if shown else _EMPTY.format("No ability has left chance yet.")
    details = f"<details><summary>Table of onsets</summary>{onsets_table([*domains, *tasks])}</details>"
    return top + _spaced(details)


def _title(table: CurveTable) -> str:
    names = list(table.runs)
    families = {facts.family for facts in table.runs.values()}
    if len(names) <= 2:
        return " and ".join(names)
    return f"{len(names)} runs" + (f" of {families.pop()}" if len(families) == 1 else "")


def _tiles(found: Comparison) -> str:
    table = found.table
    sizes = sorted({facts.parameters for facts in table.runs.values() if facts.parameters})
    tokens = [table.last_tokens(run) for run in table.runs]
    tasks = {curve.task for curve in table if curve.domain != LOSS_DOMAIN}
    told = [tile("Runs", f"{len(table.runs)}")]
    if sizes:
        span = f"{legible_count(sizes[0])} to {legible_count(sizes[-1])}" if len(sizes) > 1 else legible_count(sizes[0])
        told.append(tile("Parameters", span, f"{len(sizes)} sizes" if len(sizes) > 1 else ""))
    told.append(tile("Tokens", legible_count(max(tokens)), "of the longest run"))
    told.append(tile("Tasks", f"{len(tasks)}", f"in {len(found.panels)} domains" if found.panels else ""))
    told.append(tile("Scores", legible_count(sum(len(curve) for curve in table))))
    return f'<dl class="tiles">{"".join(told)}</dl>'


def _status(table: CurveTable) -> str:
    running = sum(not table.is_finished(run) for run in table.runs)
    if not running:
        return "All are finished." if len(table.runs) > 1 else "Finished."
    return f"{running} of {len(table.runs)} in progress or interrupted."


def _axis_switch(axes: Sequence[Axis]) -> str:
    if len(axes) < 2:
        return ""
    short = {"tokens": "tokens", "tokens_per_parameter": "per parameter", "flops": "FLOPs", "loss": "loss"}
    buttons = "".join(
        f'<button type="button" data-x="{axis.key}" aria-pressed="{str(axis is axes[0]).lower()}" '
        f'title="{html.escape(axis.title)}">{short[axis.key]}</button>'
        for axis in axes
    )
    return f'<div class="switch places" role="group" aria-label="Axis of the domains"><span>Axis</span>{buttons}</div>'


def _spaced(content: str) -> str:
    return f'<div class="spaced">{content}</div>'
