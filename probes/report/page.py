"""The shell of a report page: one HTML file that opens anywhere, offline, with everything inside.

What all reports share; the contents come from `html.py` (one run) and `compare_page.py` (several). A content security
policy in the page forbids the browser every request. plotly.js is embedded once; the only import of plotly.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pretrain.durable import replace_file
from probes.report.figures import Figure
from probes.report.run_files import ReportError

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a page.

    Attributes:
        anchor: its identifier.
        title: its heading, plain text.
        content: HTML.
    """

    anchor: str
    title: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What stands above the sections; plain text but for the last two.

    Attributes:
        kind: what sort of page it is.
        name: what it is about.
        status: one sentence.
        tiles: HTML of the numbers at the head.
        switch: HTML of the controls beside the links.
    """

    kind: str
    name: str
    status: str
    tiles: str = ""
    switch: str = ""


def write_page(text: str, output: Path) -> Path:
    """Writes a page, replacing what was there; returns `output`.

    Raises:
        ReportError: it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, text)
    except OSError as error:
        raise ReportError(f"Cannot write the report to {output}: {error}") from error
    return output


def render_page(head: Head, sections: Sequence[Section]) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    name, kind = html.escape(head.name), html.escape(head.kind)
    links = "".join(f'<a href="#{section.anchor}">{html.escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">'
        f'<h2 id="{section.anchor}-title">{html.escape(section.title)}</h2>{section.content}</section>'
        for section in sections
    )
    script = f"<script>{get_plotlyjs()}</script><script>{_asset('page.js')}</script>" if "<figure" in body else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light">\n<link rel="icon" href="data:,">\n'
        f"<title>{name} – {kind.lower()}</title>\n<style>{_asset('page.css')}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f'<header><p class="kind">{kind}</p><h1>{name}</h1><p class="status">{html.escape(head.status)}</p>'
        f"{head.tiles}</header>\n"
        f'<nav aria-label="Sections"><div class="links">{links}</div>{head.switch}</nav>\n'
        f'<main id="main">{body}</main>\n{script}\n</body>\n</html>\n'
    )


class Counter:
    """Turns figures into HTML and numbers them through the page."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, shown: Sequence[Figure | None], *, note: str = "") -> str:
        """A grid of figures with a note below; empty without figures."""
        present = [figure for figure in shown if figure is not None]
        if not present:
            return ""
        grid = "".join(self._one(figure) for figure in present)
        columns = 3 if len(present) in (3, 5, 6) else 2
        return f'<div class="grid in-{columns}">{grid}</div>' + note_below(note)

    def _one(self, figure: Figure) -> str:
        self._shown += 1
        identifier = f"figure-{self._shown}"
        content = {"data": figure.data, "layout": figure.layout, "linearRange": figure.linear_range}
        if figure.places:
            content["places"] = figure.places
        # No text of a run can end the script element.
        specification = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
        unit = f' <span class="unit">{html.escape(figure.unit)}</span>' if figure.unit else ""
        return (
            f'<figure class="{"wide" if figure.wide else "card"}" aria-labelledby="{identifier}-title">'
            f'<figcaption><span id="{identifier}-title">{html.escape(figure.title)}{unit}</span>'
            f"{_save_buttons(identifier, figure)}</figcaption>"
            f'<div class="plot" id="{identifier}" role="img" aria-label="{html.escape(figure.description)}" '
            f'style="height:{figure.layout["height"]}px"></div>'
            f'<script type="application/json" id="{identifier}-data">{specification}</script></figure>'
        )


def tile(name: str, value: str, detail: str = "") -> str:
    """One number of the head, with its name and perhaps a detail below."""
    small = f"<small>{html.escape(detail)}</small>" if detail else ""
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}{small}</dd></div>"


def note_below(text: str) -> str:
    """A remark under what it is about; empty for no text."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def scroll(table: str, *, label: str) -> str:
    """A table that scrolls sideways by itself, by keyboard too."""
    return f'<div class="scroll" role="region" aria-label="{html.escape(label)}" tabindex="0">{table}</div>'


def _save_buttons(identifier: str, figure: Figure) -> str:
    """Buttons that save the figure as a file, drawn again by the browser with its title; nothing is requested."""
    caption = html.escape(f"{figure.title}, {figure.unit}" if figure.unit else figure.title)
    return (
        '<span class="save">'
        + "".join(
            f'<button type="button" data-save="{kind}" data-figure="{identifier}" data-caption="{caption}" '
            f'aria-label="Save {caption} as {kind.upper()}">{kind.upper()}</button>'
            for kind in ("png", "svg")
        )
        + "</span>"
    )


def _asset(name: str) -> str:
    return resources.files("probes.report").joinpath(name).read_text(encoding="utf-8")
