"""What the run's state was at its saves, as the hook said it then: the latest verdict, and when it was another.

Nothing is judged here; the words and numbers are those of the run's `state` events.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from probes.dynamics.evidence import ACT, UNKNOWN, VERDICTS, WATCH
from probes.dynamics.explain_state import figures_explained
from probes.report.page import scroll

_MOST_ROWS = 30


def state_section(events: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the section; empty if no state has been said."""
    states = [event for event in events if event["kind"] == "state" and event.get("verdict") in VERDICTS]
    if not states:
        return ""
    latest = states[-1]
    verdict, step = str(latest["verdict"]), latest.get("step", "–")
    parts = [
        f'<p><strong class="state-{verdict}">{html.escape(verdict)}</strong> at step {html.escape(str(step))}: '
        f"{html.escape(str(latest.get('reason', '')))}.</p>"
    ]
    evidence = [row for row in latest.get("evidence", []) if isinstance(row, dict)]
    if len(evidence) > 1:
        items = "".join(
            f"<li>{html.escape(str(row.get('verdict')))}: {html.escape(str(row.get('sentence')))}</li>"
            for row in evidence
        )
        parts.append(f"<ul>{items}</ul>")
    domains = latest.get("domains")
    if isinstance(domains, dict) and domains:
        parts.append(scroll(_domains(domains), label="State by domain"))
        parts.append(
            f'<p class="note">Held against {html.escape(str(latest.get("basis", "")))}. '
            f"{html.escape(' '.join(figures_explained()))}</p>"
        )
    called = [state for state in states if state["verdict"] in (WATCH, ACT)]
    unknown = [state for state in states if state["verdict"] == UNKNOWN]
    if called or unknown:
        said = [f"{len(called)} of {len(states)} saves called for watch or act"] if called else []
        said += [f"nothing could be judged at {len(unknown)} of {len(states)} saves"] if unknown else []
        parts.append(f"<h3>{'; '.join(said)}</h3>")
        # Of saves in a row at which nothing could be judged the first.
        rows = [
            one for one in states if one in called or (one in unknown and one.get("unknown_since") == one.get("step"))
        ]
        parts.append(scroll(_history(rows[-_MOST_ROWS:]), label="Saves that were not healthy"))
    return "".join(parts)


def _domains(domains: Mapping[str, Any]) -> str:
    reasons = any(isinstance(found, dict) and found.get("unknown") for found in domains.values())
    head = '<th scope="col">Why nothing is judged</th>' if reasons else ""

    def reason(found: Mapping[str, Any]) -> str:
        return f'<td class="words">{html.escape(str(found.get("unknown", "")))}</td>' if reasons else ""

    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(found.get("verdict")))}</td>'
        f'<td class="number">{_signed(found.get("change"))}</td>'
        f'<td class="number">{_signed(found.get("level"))}</td>{reason(found)}</tr>'
        for name, found in domains.items()
        if isinstance(found, dict)
    )
    return (
        '<table><thead><tr><th scope="col">Domain</th><th scope="col">Verdict</th>'
        '<th scope="col" class="number">Change</th><th scope="col" class="number">Level</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _history(states: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td class="number">{html.escape(str(state.get("step", "–")))}</td>'
        f'<th scope="row">{html.escape(str(state["verdict"]))}</th>'
        f'<td class="words">{html.escape(str(state.get("reason", "")))}</td></tr>'
        for state in states
    )
    return (
        '<table><thead><tr><th scope="col" class="number">Step</th><th scope="col">Verdict</th>'
        f'<th scope="col">Reason</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _signed(value: Any) -> str:
    return f"{value:+.1f}" if isinstance(value, int | float) else "–"
