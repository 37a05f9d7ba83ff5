from __future__ import annotations

from probes.dynamics.surprises import WATCH_FROM
from probes.report.state_section import state_section

STATE = {
    "kind": "state",
    "step": 400,
    "verdict": "act",
    "reason": "all tasks <together> fell 4.0 deviations",
    "basis": "its own past",
    "domains": {"knowledge": {"verdict": "act", "change": -4.0, "level": None}},
    "evidence": [{"verdict": "act", "sentence": "first"}, {"verdict": "watch", "sentence": "second & last"}],
}


def test_the_latest_verdict_leads_with_its_reason_and_its_domains():
    page = state_section([STATE | {"step": 200, "verdict": "healthy"}, {"kind": "save"}, STATE])
    assert page.index(">act</strong> at step 400: all tasks &lt;together&gt; fell 4.0 deviations.") > 0
    assert "<li>watch: second &amp; last</li>" in page
    assert '<th scope="row">knowledge</th><td>act</td><td class="number">-4.0</td><td class="number">–</td>' in page
    assert "1 of 2 saves called for watch or act" in page
    assert (
        "change: the scores of the last one to three checkpoints against what was expected" in page
        and f"From {-WATCH_FROM:g} down it calls for watch" in page
    )


def test_unknown_is_shown_with_its_reason_and_once_for_saves_in_a_row():
    unknown = {"kind": "state", "verdict": "unknown", "reason": "nothing is judged. piqa: 3 of 6", "unknown_since": 100}
    page = state_section([unknown | {"step": 100}, unknown | {"step": 200}])
    assert page.index('class="state-unknown">unknown</strong> at step 200: nothing is judged. piqa: 3 of 6.') > 0
    assert "nothing could be judged at 2 of 2 saves" in page
    assert page.count('<th scope="row">unknown</th>') == 1
    domain = {"bias": {"verdict": "unknown", "change": None, "level": None, "unknown": "crows: at <chance>"}}
    page = state_section([STATE | {"domains": STATE["domains"] | domain}])
    assert "<td>unknown</td>" in page and "crows: at &lt;chance&gt;" in page and "Why nothing is judged" in page


def test_without_a_state_there_is_no_section():
    assert state_section([{"kind": "save"}, {"kind": "state", "verdict": "unheard of"}]) == ""
