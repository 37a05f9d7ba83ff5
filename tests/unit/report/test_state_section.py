from __future__ import annotations

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
    assert "1 of 2 saves were not healthy" in page


def test_without_a_state_there_is_no_section():
    assert state_section([{"kind": "save"}, {"kind": "state", "verdict": "unheard of"}]) == ""
