"""The README's tables of training dynamics are those of the committed result."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.dynamics.__main__ import SECTIONS, readme

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_readme_are_those_of_the_result() -> None:
    figures = json.loads((ROOT / "tests/bench/results/dynamics.json").read_text())["figures"]
    assert {*SECTIONS, "older_finals"} <= set(figures)
    text = (ROOT / "README.md").read_text()
    start, end = "<!-- dynamics -->\n", "\n<!-- /dynamics -->"
    assert text[text.index(start) + len(start) : text.index(end)] == readme(figures)
