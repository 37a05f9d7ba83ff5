"""Whole runs whose data changes on the way, and Amber's chunks: what the record says, and what `show` says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.data.inspect import show_step
from tests.support import runs

# One process: what changes here is the data. Eight samples a step, 128 tokens each.
SMALL = ["train.micro_batch_size=4", "probe=off", "track=[jsonl]"]


def run(folder: Path, name: str, *more: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, what was printed, and the rows of the steps."""
    log = folder / f"{name}.log"
    log.unlink(missing_ok=True)
    code = runs.finish(runs.overrides(folder, name, *SMALL, *more), processes=1, log=log)
    return code, log.read_text(), [row for row in runs.metrics(folder / "runs" / name) if "train/loss" in row]


@pytest.mark.slow
def test_shares_and_skipped_ranges_change_on_the_way_when_the_user_says_so(folder: Path) -> None:
    directory = folder / "runs/changing"
    assert run(folder, "changing", "train.steps=10")[0] == 0
    seen = [(s.source, s.epoch, s.window) for step in range(1, 11) for s in show_step(directory, step=step)]

    other = [
        "train.steps=24",
        "train.accept_new_length=true",
        "data.sources.tales.weight=1",
        "data.sources.lists.weight=7",
        "data.skip=['88:104']",
    ]
    code, said, rows = run(folder, "changing", *other)
    assert code != 0 and "data.accept_changes=true" in said and "data.sources.tales.weight: 3.0, now 1.0" in said
    assert len(rows) == 10, "a refused start leaves the record as it was"

    code, said, rows = run(folder, "changing", *other, "data.accept_changes=true")
    assert code == 0, said[-3000:]
    # 80 samples at 3:1, then 112 of the 128 that follow at 1:7; sixteen were skipped.
    assert rows[9]["data/tales/tokens"] == 60 * 128 and rows[9]["data/lists/tokens"] == 20 * 128
    assert rows[-1]["data/tales/tokens"] == (60 + 14) * 128
    assert rows[-1]["data/lists/tokens"] == (20 + 98) * 128
    assert rows[-1]["data/tales/epochs"] == pytest.approx(74 * rows[0]["data/tales/epochs"] / 6)
    change = next(event for event in runs.events(directory) if event["kind"] == "order_changed")
    assert (change["step"], change["sample"]) == (10, 80)
    assert "data.sources.tales: weight 3.0, now weight 1.0" in change["changes"]

    again = [(s.source, s.epoch, s.window) for step in range(1, 25) for s in show_step(directory, step=step)]
    assert again[:80] == seen, "what was trained on before the change is still shown as it was"
    assert len(set(again)) == len(again) == 192, "a window came twice within an epoch of its source"

    log = folder / "changing.log"
    code = runs.finish(
        runs.overrides(folder, "changing", *SMALL, *other, "data.skip=['16:24']", "data.accept_changes=true"),
        processes=1,
        log=log,
    )
    assert code != 0 and "was trained on already" in log.read_text()


@pytest.mark.slow
def test_chunks_end_with_a_save(folder: Path) -> None:
    shares = ["data.sources.tales.weight=1", "data.sources.lists.weight=1", "data.order=chunked", "data.num_chunks=17"]
    code, said, rows = run(folder, "chunks", *shares, "checkpoint.every=1000 steps", "checkpoint.early=[]")
    assert code == 0, said[-3000:]
    directory = folder / "runs/chunks"
    saved = sorted(int(path.name[5:]) for path in (directory / "checkpoints").glob("step_*"))
    chunks = [{s.window % 17 for s in show_step(directory, step=step)} for step in range(1, 25)]
    ends = [step for step in range(1, 24) if chunks[step] != chunks[step - 1]]
    assert all(len(chunk) == 1 for chunk in chunks) and len(ends) >= 2
    assert saved == [*ends, 24]


@pytest.mark.slow  # in every test run: tests/unit/data/test_epochs.py
def test_a_source_that_will_be_read_often_is_reported_when_the_run_starts(folder: Path) -> None:
    few = folder / "few.jsonl"
    few.write_text("".join(f"{line}\n" for line in (folder / "tales.jsonl").read_text().splitlines()[:12]))
    code, said, rows = run(folder, "often", f"data.sources.tales.paths=[{few}]", "train.steps=14")
    assert code == 0, said[-3000:]
    (event,) = (event for event in runs.events(folder / "runs/often") if event["kind"] == "sources_repeated")
    assert event["step"] == 0 and list(event["sources"]) == ["tales"]
    told = event["sources"]["tales"]
    assert told["tokens"] == rows[-1]["data/tales/tokens"], "the last step's own account"
    assert told["epochs"] == pytest.approx(rows[-1]["data/tales/epochs"]) and told["epochs"] > 4
    assert said.count(f"warning: The run reads tales {told['epochs']:.1f} times") == 1
