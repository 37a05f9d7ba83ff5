"""The benchmark reads the older Pythia's files as they are, and refuses to run its sections without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.dynamics.__main__ import main
from tests.bench.dynamics.older_pythia import older_tables

SIZES = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
LARGE_BATCHES = ("160m", "410m", "1.4b")
TOKENS_PER_STEP, TOTAL_TOKENS = 2_097_152, 299_892_736_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints a run; `five-shot` of three sizes holds files that were made without examples, as published."""
    for size in SIZES:
        last = 71_500 if size in LARGE_BATCHES else 143_000
        for run in (f"pythia-{size}", f"pythia-{size}-deduped"):
            for name, shots in (("zero-shot", 0), ("five-shot", 0 if size in LARGE_BATCHES else 5)):
                (tmp_path / run / name).mkdir(parents=True)
                for step in (last // 2, last):
                    content = {"results": {"piqa": {"acc": 0.6, "acc_stderr": 0.01}}, "config": {"num_fewshot": shots}}
                    (tmp_path / run / name / f"{run}-global_step{step}.json").write_text(json.dumps(content))
    return tmp_path


def test_files_made_without_examples_are_not_in_the_five_shot_sets(folder: Path) -> None:
    tables = older_tables(folder)
    assert {curve.series.num_fewshot for key, table in tables.items() if key[1] == 5 for curve in table} == {5}
    for deduped in (False, True):
        names = [f"pythia-{size}{'-deduped' if deduped else ''}" for size in SIZES]
        large = [name for name in names if name.removesuffix("-deduped").removeprefix("pythia-") in LARGE_BATCHES]
        assert set(tables[deduped, 0].runs) == set(names)
        assert set(tables[deduped, 5].runs) == set(names) - set(large)


def test_runs_with_large_batches_end_at_the_same_tokens(folder: Path) -> None:
    for curve in older_tables(folder)[False, 0]:
        assert list(curve.tokens_C) == [TOTAL_TOKENS / 2 // TOKENS_PER_STEP * TOKENS_PER_STEP, TOTAL_TOKENS]


@pytest.mark.parametrize("section", ["older_finals", "older_pythia"])
def test_sections_on_the_older_runs_ask_for_their_folder(
    section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--section", section, "--json", str(tmp_path / "result.json")])
    assert "--older-pythia FOLDER" in capsys.readouterr().err
