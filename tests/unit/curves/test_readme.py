"""What README shows of the notebook interface runs as it stands there."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

README = (Path(__file__).parents[3] / "README.md").read_text()


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    section = README.partition("### In a notebook")[2]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example[1], "README.md", "exec"), names)
    predicted = names["predicted"].to_pandas()  # type: ignore[attr-defined]
    sure = predicted[predicted.refused.isna()]
    assert len(sure) >= 5 and (sure.predicted - sure.came).abs().mean() < 0.03
    xml.etree.ElementTree.parse(tmp_path / "trust.svg")
