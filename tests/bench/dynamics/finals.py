"""Final scores of Pythia's sizes from a part of their training: with smaller finished sizes as references, and without.

Mean absolute error and mean signed error (bias) in accuracy over six tasks. A size sees smaller finished sizes and its
own past, and nothing later: `CurveTable.until` cuts before anything is fitted. Settings were chosen on the runs on
standard data; those on deduplicated data are held out. `sparse` leaves each curve a few checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probes.dynamics.chance import at_chance
from probes.dynamics.extrapolate import damped_line, last_value, line, power_law
from probes.dynamics.predict import Prediction, predict_finals
from probes.dynamics.published import PYTHIA_TOTAL_TOKENS
from probes.dynamics.references import family_references
from probes.dynamics.surface import relevant
from probes.dynamics.table import CurveTable, Series, TaskCurve
from tests.bench.dynamics.sets import markdown, mean, sets, sizes, tokens_at

STEPS = {"9%": 13_000, "23%": 33_000, "30%": 43_000, "51%": 73_000}
SPARSE_STEPS = (3_000, 23_000, 43_000, 73_000)
"""Checkpoints of a run that keeps few: three at 30 % of the tokens and four at 51 %."""
GROUPS = {"held_out": True, "chosen_on": False}
"""Whether their data is deduplicated."""

HEAD = ("", "last value", "line", "power law", "damped line", "predicted", "bias", "80% held")

_TARGETS_ABOVE = 1e9
_SPARSE = ("30%", "51%")
_BASELINES: dict[str, Callable[[TaskCurve, float], float]] = {
    "last_value": lambda curve, tokens: last_value(curve),
    "line": line,
    "power_law": power_law,
    "damped_line": damped_line,
}


def figures(*, quick: bool) -> dict[str, Any]:
    """Errors, biases and how many truths the 80% intervals held; by group of runs and share of the tokens seen."""
    shares = {share: step for share, step in STEPS.items() if not quick or share == "30%"}
    groups = {group: _group(deduped, shares) for group, deduped in GROUPS.items()}
    held_out = groups["held_out"]
    return {
        "final_mae": held_out["with_references"]["30%"]["predicted"],
        "final_best_baseline_mae": held_out["with_references"]["30%"]["best_baseline"],
        "coverage_80": held_out["coverage_80"],
        **groups,
    }


def table(figures: Mapping[str, Any]) -> str:
    """One row for each share, of the runs that are held out first."""
    rows: list[list[object]] = []
    for group, named in (("held_out", "held out"), ("chosen_on", "chosen on")):
        for way, words in (("with_references", ""), ("own_past", ", own past"), ("sparse", ", own past, few*")):
            for share, at in figures[group][way].items():
                rows.append(row(f"{share}{words}, {named}", at))
    return markdown(HEAD, rows)


def row(named: str, at: Mapping[str, Any]) -> list[object]:
    """A row below `HEAD`."""
    errors = [at[name] for name in (*_BASELINES, "predicted")]
    return [named, *errors, f"{at['bias']:+.4f}", f"{at['coverage_80']:.2f}"]


def _group(deduped: bool, shares: Mapping[str, int]) -> dict[str, Any]:
    ways = {
        "with_references": {share: with_references(_sets(deduped), step) for share, step in shares.items()},
        "own_past": {share: _alone(deduped, step) for share, step in shares.items() if share != "9%"},
        "sparse": {share: _alone(deduped, step, sparse=True) for share, step in shares.items() if share in _SPARSE},
    }
    for at in (at for way in ways.values() for at in way.values()):
        at.pop("_bias_of_run")
    inside = [held for at in ways["with_references"].values() for held in at.pop("_inside")]
    alone = [held for way in ("own_past", "sparse") for at in ways[way].values() for held in at.pop("_inside")]
    return {"coverage_80": mean(inside), "coverage_80_own_past": mean(alone), "num_predictions": len(inside), **ways}


def with_references(tables: Sequence[tuple[CurveTable, list[Series]]], step: int) -> dict[str, Any]:
    """Every size above 1B, from the smaller ones.

    Args:
        tables: sets of runs of one family, each with the series that are predicted.
        step: of the published Pythia's tokens a step; what is later of a run is not known.

    Returns:
        Mean errors; and, for the caller to take out, which truths lay in their intervals as `_inside`, and each run's
        bias as `_bias_of_run`.
    """
    errors = _Errors()
    refused = 0
    for whole, tasks in tables:
        for run in sizes(whole, above=_TARGETS_ABOVE):
            known = whole.until(run, tokens_at(step))
            references = family_references(known, run).names
            assert set(references) <= set(sizes(whole, above=0.0, below=whole.runs[run].parameters or 0.0))
            found = predict_finals(known, run, series=tasks, references=references, even_at_chance=True)
            errors.add(known, whole, found)
            refused += len(at_chance(known, tasks, references=references, run=run))
    return errors.figures() | {"refused_for_chance": refused}


def _alone(deduped: bool, step: int, *, sparse: bool = False) -> dict[str, Any]:
    """Every size from 410M on, from its own past."""
    errors = _Errors()
    for whole, tasks in _sets(deduped):
        for run in sizes(whole):
            known = whole.until(run, tokens_at(step))
            if sparse:
                kept = [c.where(np.isin(c.step_C, SPARSE_STEPS)) if c.run == run else c for c in known]
                known = CurveTable(known.runs.values(), kept)
            errors.add(known, whole, predict_finals(known, run, series=tasks, references=[], even_at_chance=True))
    return errors.figures()


def _sets(deduped: bool) -> list[tuple[CurveTable, list[Series]]]:
    return [(whole, tasks) for name, whole, tasks in sets() if name.startswith("deduped") == deduped]


class _Errors:
    """Of all ways to predict."""

    def __init__(self) -> None:
        self._off: dict[str, list[float]] = defaultdict(list)
        self._off_of_run: dict[str, list[float]] = defaultdict(list)
        self._inside: list[bool] = []

    def add(self, known: CurveTable, whole: CurveTable, found: Sequence[Prediction]) -> None:
        """Predictions for one run, and what the baselines say of it."""
        for one in found:
            assert one.refused is None, one
            seen, curve = known.get(one.run, one.series), whole.get(one.run, one.series)
            assert seen is not None and curve is not None and curve.tokens_C[-1] == PYTHIA_TOTAL_TOKENS
            truth, past = float(curve.value_C[-1]), relevant(seen, float(PYTHIA_TOTAL_TOKENS))
            self._off["predicted"].append(one.value - truth)
            self._off_of_run[one.run].append(one.value - truth)
            self._inside.append(one.low <= truth <= one.high)
            for name, method in _BASELINES.items():
                self._off[name].append(method(past, float(PYTHIA_TOTAL_TOKENS)) - truth)

    def figures(self) -> dict[str, Any]:
        means = {name: mean([abs(off) for off in offs]) for name, offs in self._off.items()}
        best = min(means[name] for name in _BASELINES)
        return means | {
            "bias": mean(self._off["predicted"]),
            "bias_of": {name: mean(self._off[name]) for name in _BASELINES},
            "best_baseline": best,
            "ratio": means["predicted"] / best,
            "coverage_80": mean(self._inside),
            "_inside": self._inside,
            "_bias_of_run": {run: mean(offs) for run, offs in self._off_of_run.items()},
        }
