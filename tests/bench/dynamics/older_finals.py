"""Final scores of the older Pythia's sizes, on which no setting was chosen: `--older-pythia FOLDER`.

The same measurement as section `finals`, on the runs that `tests.bench.dynamics.older_pythia` reads. 160M, 410M and
1.4B were trained with batches twice as large as the other sizes, and have no scores with five examples. Zero-shot
scores are predicted a second time without these three, to be compared with the scores with five examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from probes.dynamics.published import PYTHIA_TASKS
from probes.dynamics.table import CurveTable, Series
from tests.bench.dynamics.finals import HEAD, STEPS, row, with_references
from tests.bench.dynamics.older_pythia import older_tables
from tests.bench.dynamics.sets import markdown, mean, perplexity

_SHARES = ("23%", "30%", "51%")
_WAYS = {
    "0_shot": "0-shot, all sizes",
    "0_shot_one_batch_size": "0-shot, without 160M, 410M and 1.4B",
    "5_shot": "5-shot, without 160M, 410M and 1.4B",
}
_TARGETS = ("1.4b", "2.8b", "6.9b", "12b")


def figures(*, quick: bool, folder: Path) -> dict[str, Any]:
    """Errors, biases and how many truths the 80% intervals held; by share of the tokens seen."""
    tables = older_tables(folder)
    zero, five = ([(deduped, shots) for deduped, shots in tables if shots == wanted] for wanted in (0, 5))
    sets = {"0_shot": [_six_tasks(tables[key], shots=0) for key in zero]}
    sets["0_shot_one_batch_size"] = [
        _six_tasks(tables[deduped, 0].select(runs=list(tables[deduped, 5].runs)), shots=0) for deduped, _ in five
    ]
    sets["5_shot"] = [_six_tasks(tables[key], shots=5) for key in five]
    shares = {share: STEPS[share] for share in _SHARES if not quick or share == "30%"}
    return {way: _figures_of(tables_of_way, shares) for way, tables_of_way in sets.items()}


def table(figures: Mapping[str, Any]) -> str:
    """One row for each share of the tokens; below it each run's bias."""
    rows = [
        row(f"{share}, {words}", at) for way, words in _WAYS.items() for share, at in figures[way]["shares"].items()
    ]
    biases = [
        [f"{words}, {'deduplicated' if suffix else 'standard'} data", *_biases(figures[way]["bias_of_run"], suffix)]
        for way, words in _WAYS.items()
        for suffix in ("", "-deduped")
    ]
    head = ["bias, mean of all shares", *(size.upper() for size in _TARGETS)]
    return f"{markdown(HEAD, rows)}\n\n{markdown(head, biases)}"


def _six_tasks(whole: CurveTable, *, shots: int) -> tuple[CurveTable, list[Series]]:
    tasks = [replace(one, num_fewshot=shots) for one in PYTHIA_TASKS]
    return whole.select(series=[*tasks, perplexity(shots)]), tasks


def _figures_of(tables: list[tuple[CurveTable, list[Series]]], shares: Mapping[str, int]) -> dict[str, Any]:
    found = {share: with_references(tables, step) for share, step in shares.items()}
    inside = [held for at in found.values() for held in at.pop("_inside")]
    of_runs = [at.pop("_bias_of_run") for at in found.values()]
    return {
        "shares": found,
        "coverage_80": mean(inside),
        "num_predictions": len(inside),
        "bias_of_run": {run: mean([biases[run] for biases in of_runs]) for run in of_runs[0]},
    }


def _biases(bias_of_run: Mapping[str, float], suffix: str) -> list[str]:
    names = [f"pythia-{size}{suffix}" for size in _TARGETS]
    return [f"{bias_of_run[name]:+.4f}" if name in bias_of_run else "" for name in names]
