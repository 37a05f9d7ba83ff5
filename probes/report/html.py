"""Writes the report of a run: one HTML file that opens anywhere, offline, with everything inside.

Here the page is put together; figures, table and text come from the other files. A content security policy
in the page forbids the browser every request. plotly.js is embedded once; the only import of plotly.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from probes.report import figures
from probes.report.figures import Figure
from probes.report.key_figures import key_figures, status
from probes.report.run_files import ReportError, RunFiles, read_run
from probes.report.table import html_table

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_QUIET_EVENTS = frozenset({"start", "end", "plan", "probe_plan", "probe", "save", "finished", "scored_beside", "shown"})
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
    page = _page(read_run(directory))
    temporary = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, output)
    except OSError as error:
        raise ReportError(f"Cannot write the report to {output}: {error}") from error
    return output


def _page(run: RunFiles) -> str:
    from plotly.offline import get_plotlyjs

    name = html.escape(run.name)
    sections = _sections(run)
    links = "".join(f'<a href="#{anchor}">{html.escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{html.escape(title)}</h2>'
        f"{content}</section>"
        for anchor, title, content in sections
    )
    script = f"<script>{get_plotlyjs()}</script><script>{_asset('page.js')}</script>" if "<figure" in body else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light">\n<link rel="icon" href="data:,">\n'
        f"<title>{name} – training report</title>\n<style>{_asset('page.css')}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f'<header><p class="kind">Training report</p><h1>{name}</h1><p class="status">{html.escape(status(run))}</p>'
        f"{_tiles(run)}</header>\n"
        f'<nav aria-label="Sections"><div class="links">{links}</div>{_axis_switch()}</nav>\n'
        f'<main id="main">{body}</main>\n{script}\n</body>\n</html>\n'
    )


def _sections(run: RunFiles) -> list[tuple[str, str, str]]:
    """Anchor, heading and content of every section that has something to show."""
    axis = figures.token_axis(run)
    counter = _Counter()
    shared = "Both panels share the token axis. " if run.curves else ""
    zero = "Step 0, before training, is drawn at the left edge as “0”." if axis.starts_at_zero else ""
    top = counter.show([figures.headline(run, axis)], note=(shared + zero).strip())
    if not top:
        top = '<p class="empty">Nothing has been logged yet.</p>'
    sections = [("overview", "Overview", top)]
    if run.validation("loss") or run.validation("bits_per_byte"):
        note = "Bits per byte do not depend on the tokenizer and can be compared between runs."
        sections.append(("validation", "Validation", counter.show(figures.validation_figures(run, axis), note=note)))
    sections.append(("probes", "Probes", _probes(run, counter)))
    if run.curves:
        sections.append(("scores", "First and last scores", _scores(run)))
    health = counter.show(figures.health_figures(run, axis))
    if health:
        sections.append(("training", "Training", health))
    spent = counter.show([figures.time_figure(run), figures.source_figure(run)])
    if spent:
        sections.append(("time", "Time and data", spent))
    events = [event for event in run.events if event["kind"] not in _QUIET_EVENTS]
    if events:
        sections.append(("events", "Events", _events(events)))
    config = f'<details><summary>config.yaml</summary><pre tabindex="0">{html.escape(run.config_text)}</pre></details>'
    sections.append(("configuration", "Configuration", config))
    return sections


class _Counter:
    """Turns figures into HTML and numbers them through the page."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, shown: Sequence[Figure | None], *, note: str = "") -> str:
        present = [figure for figure in shown if figure is not None]
        if not present:
            return ""
        grid = "".join(self._one(figure) for figure in present)
        columns = 3 if len(present) in (3, 5, 6) else 2
        return f'<div class="grid in-{columns}">{grid}</div>' + (
            f'<p class="note">{html.escape(note)}</p>' if note else ""
        )

    def _one(self, figure: Figure) -> str:
        self._shown += 1
        identifier = f"figure-{self._shown}"
        specification = json.dumps(
            {"data": figure.data, "layout": figure.layout, "linearRange": figure.linear_range}, allow_nan=False
        ).replace("<", "\\u003c")  # No text of a run can end the script element.
        unit = f' <span class="unit">{html.escape(figure.unit)}</span>' if figure.unit else ""
        return (
            f'<figure class="{"wide" if figure.wide else "card"}" aria-labelledby="{identifier}-title">'
            f'<figcaption id="{identifier}-title">{html.escape(figure.title)}{unit}</figcaption>'
            f'<div class="plot" id="{identifier}" role="img" aria-label="{html.escape(figure.description)}" '
            f'style="height:{figure.layout["height"]}px"></div>'
            f'<script type="application/json" id="{identifier}-data">{specification}</script></figure>'
        )


def _tiles(run: RunFiles) -> str:
    tiles = "".join(
        f"<div><dt>{html.escape(tile.name)}</dt><dd>{html.escape(tile.value)}"
        + (f"<small>{html.escape(tile.detail)}</small>" if tile.detail else "")
        + "</dd></div>"
        for tile in key_figures(run)
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _axis_switch() -> str:
    return (
        '<div class="switch" role="group" aria-label="Token axis"><span>Token axis</span>'
        '<button type="button" data-axis="log" aria-pressed="true">log</button>'
        '<button type="button" data-axis="linear" aria-pressed="false">linear</button></div>'
    )


def _probes(run: RunFiles, counter: _Counter) -> str:
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
        '<div class="scroll" role="region" aria-label="First and last scores" tabindex="0">'
        f"{html_table(run.curves)}</div>"
        '<p class="note">SE is the standard error of the change, taking both scores as independent; they share their '
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
    return (
        '<div class="scroll" role="region" aria-label="Events" tabindex="0"><table><thead><tr>'
        '<th scope="col" class="number">Step</th><th scope="col">Event</th><th scope="col">Details</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _asset(name: str) -> str:
    return resources.files("probes.report").joinpath(name).read_text(encoding="utf-8")
