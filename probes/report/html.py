"""Writes the report of a run: one HTML file that opens anywhere, offline, with everything inside.

Here its sections are put together; figures, table and text come from the other files, the page around them from
`page.py`. The comparison of several runs is `compare_page.py`'s.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from probes.report import figures
from probes.report.key_figures import key_figures, status
from probes.report.page import Counter, Head, Section, render_page, scroll, tile, write_page
from probes.report.run_files import RunFiles, read_run
from probes.report.state_section import state_section
from probes.report.table import html_table

_QUIET_EVENTS = frozenset(
    {"start", "end", "plan", "probe_plan", "probe", "save", "finished", "scored_beside", "shown", "state"}
)
_MOST_EVENTS = 200


def write_report(directory: Path, output: Path) -> Path:
    """Writes the report of one run, finished or not.

    Args:
        directory: the run directory.
        output: the HTML file; replaced atomically if it exists.

    Returns:
        `output`.

    Raises:
        ReportError: not a run directory, or the file cannot be written.
    """
    run = read_run(directory)
    head = Head(kind="Training report", name=run.name, status=status(run), tiles=_tiles(run), switch=_axis_switch())
    return write_page(render_page(head, _sections(run)), output)


def _sections(run: RunFiles) -> list[Section]:
    """Every section that has something to show."""
    axis = figures.token_axis(run)
    counter = Counter()
    shared = "Both panels share the token axis. " if run.curves else ""
    zero = "Step 0, before training, is drawn at the left edge as “0”." if axis.starts_at_zero else ""
    top = counter.show([figures.headline(run, axis)], note=(shared + zero).strip())
    if not top:
        top = '<p class="empty">Nothing has been logged yet.</p>'
    sections = [Section("overview", "Overview", top)]
    state = state_section(run.events)
    if state:
        sections.append(Section("state", "State", state))
    if run.validation("loss") or run.validation("bits_per_byte"):
        note = "Bits per byte do not depend on the tokenizer and can be compared between runs."
        sections.append(
            Section("validation", "Validation", counter.show(figures.validation_figures(run, axis), note=note))
        )
    sections.append(Section("probes", "Probes", _probes(run, counter)))
    if run.curves:
        sections.append(Section("scores", "First and last scores", _scores(run)))
    health = counter.show(figures.health_figures(run, axis))
    if health:
        sections.append(Section("training", "Training", health))
    spent = counter.show([figures.time_figure(run), figures.source_figure(run)])
    if spent:
        sections.append(Section("time", "Time and data", spent))
    events = [event for event in run.events if event["kind"] not in _QUIET_EVENTS]
    if events:
        sections.append(Section("events", "Events", _events(events)))
    config = f'<details><summary>config.yaml</summary><pre tabindex="0">{html.escape(run.config_text)}</pre></details>'
    sections.append(Section("configuration", "Configuration", config))
    return sections


def _tiles(run: RunFiles) -> str:
    tiles = "".join(tile(figure.name, figure.value, figure.detail) for figure in key_figures(run))
    return f'<dl class="tiles">{tiles}</dl>'


def _axis_switch() -> str:
    return (
        '<div class="switch" role="group" aria-label="Token axis"><span>Token axis</span>'
        '<button type="button" data-axis="log" aria-pressed="true">log</button>'
        '<button type="button" data-axis="linear" aria-pressed="false">linear</button></div>'
    )


def _probes(run: RunFiles, counter: Counter) -> str:
    axis = figures.token_axis(run)
    domains = list(dict.fromkeys(curve.domain for curve in run.curves))
    if not domains:
        return '<p class="empty">No probes yet. Scores appear here after the first save of a run with probes.</p>'
    shown = "".join(
        f"<h3>{html.escape(domain)}</h3>{counter.show(figures.probe_figures(run, axis, domain))}" for domain in domains
    )
    return f'{shown}<p class="note">Shaded: ±1 standard error over items. Dotted: the score of guessing.</p>'


def _scores(run: RunFiles) -> str:
    return (
        scroll(html_table(run.curves), label="First and last scores")
        + '<p class="note">SE is the standard error of the change, taking both scores as independent; they share their '
        "items, so the true error is smaller. Marked better or worse from 2 SE on.</p>"
    )


def _events(events: Sequence[dict]) -> str:
    rows = "".join(
        f'<tr><td class="number">{html.escape(str(event.get("step", "–")))}</td>'
        f'<th scope="row">{html.escape(event["kind"].replace("_", " "))}</th><td>'
        + html.escape(
            ", ".join(f"{key}: {value}" for key, value in event.items() if key not in ("time", "step", "kind"))
        )
        + "</td></tr>"
        for event in events[-_MOST_EVENTS:]
    )
    left_out = len(events) - _MOST_EVENTS
    note = (
        f'<p class="note">The last {_MOST_EVENTS} of {len(events)}; all are in events.jsonl.</p>'
        if left_out > 0
        else ""
    )
    table = (
        '<table><thead><tr><th scope="col" class="number">Step</th><th scope="col">Event</th>'
        f'<th scope="col">Details</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    return scroll(table, label="Events") + note
