"""Final scores of Pythia's sizes from a part of their training: with smaller finished sizes as references, and without.

Mean absolute error in accuracy over six tasks and four sets. A size sees smaller finished sizes and its own past, and
nothing later: `CurveTable.until` cuts before anything is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from probes.dynamics.chance import at_chance
from probes.dynamics.extrapolate import damped_line, last_value, line, power_law
from probes.dynamics.predict import Prediction, predict_finals
from probes.dynamics.published import PYTHIA_TOTAL_TOKENS
from probes.dynamics.references import family_references
from probes.dynamics.surface import relevant
from probes.dynamics.table import CurveTable, Series, TaskCurve
from tests.bench.dynamics.sets import markdown, mean, sets, sizes, tokens_at

STEPS = {"9%": 13_000, "23%": 33_000, "30%": 43_000, "51%": 73_000}
_TARGETS_ABOVE = 1e9
_BASELINES: dict[str, Callable[[TaskCurve, float], float]] = {
    "last_value": lambda curve, tokens: last_value(curve),
    "line": line,
    "power_law": power_law,
    "damped_line": damped_line,
}
_SIMPLE = ("last_value", "line", "power_law")


def figures(*, quick: bool) -> dict[str, Any]:
    """Errors, their ratios, and how many truths the 80% intervals held; by share of the tokens seen."""
    found: dict[str, Any] = {}
    for share, step in STEPS.items():
        if not quick or share == "30%":
            found[share] = _at(step)
    inside = [held for at in found.values() for held in at.pop("_inside")]
    own = [held for at in found.values() for held in at.pop("_inside_own")]
    at = found["30%"]
    return {
        "by_share": found,
        "final_mae": at["predicted"],
        "final_best_baseline_mae": at["best_simple"],
        "coverage_80": mean(inside),
        "coverage_80_without_references": mean(own) if own else None,
        "num_predictions": len(inside),
    }


def table(figures: Mapping[str, Any]) -> str:
    """One row for each share."""
    head = ["tokens seen", "last value", "line", "power law", "damped line", "predicted", "own past only*"]
    rows = [
        [
            share,
            at["last_value"],
            at["line"],
            at["power_law"],
            at["damped_line"],
            at["predicted"],
            at["own"]["predicted"],
        ]
        for share, at in figures["by_share"].items()
    ]
    return markdown(head, [["–" if cell is None else cell for cell in row] for row in rows])


def _at(step: int) -> dict[str, Any]:
    """Every size above 1B with references, every size from 410M on without, at one step."""
    errors: dict[str, list[float]] = {}
    own_errors: dict[str, list[float]] = {}
    inside, inside_own, refused = [], [], 0
    for _, whole, tasks in sets():
        for run in sizes(whole):
            known = whole.until(run, tokens_at(step))
            truth = {one: _truth(whole, run, one) for one in tasks}
            baselines = {one: _baselines(known, run, one) for one in tasks}
            alone = predict_finals(known, run, series=tasks, references=[], even_at_chance=True)
            for one, prediction in zip(tasks, alone, strict=True):
                _add(own_errors, baselines[one] | _own(prediction), truth[one])
                if prediction.refused is None:
                    inside_own.append(prediction.low <= truth[one] <= prediction.high)
            if (whole.runs[run].parameters or 0.0) < _TARGETS_ABOVE:
                continue
            references = family_references(known, run).names
            assert references == [name for name in sizes(whole) if name in references]
            learnt = predict_finals(known, run, series=tasks, references=references, even_at_chance=True)
            for one, prediction in zip(tasks, learnt, strict=True):
                assert prediction.refused is None, prediction
                _add(errors, baselines[one] | {"predicted": prediction.value}, truth[one])
                inside.append(prediction.low <= truth[one] <= prediction.high)
            refused += len(at_chance(known, tasks, references=references, run=run))
    means = {name: mean(values) for name, values in errors.items()}
    own = {name: mean(values) for name, values in own_errors.items() if len(values) == len(own_errors["last_value"])}
    best, best_own = (min(found[name] for name in _SIMPLE) for found in (means, own))
    return means | {
        "best_simple": best,
        "ratio": means["predicted"] / best,
        "ratio_to_damped_line": means["predicted"] / means["damped_line"],
        "coverage_80": mean(inside),
        "refused_for_chance": refused,
        "own": own
        | {
            "best_simple": best_own,
            "predicted": own.get("predicted"),
            "ratio": own["predicted"] / best_own if "predicted" in own else None,
            "coverage_80": mean(inside_own) if inside_own else None,
        },
        "_inside": inside,
        "_inside_own": inside_own,
    }


def _own(prediction: Prediction) -> dict[str, float]:
    return {} if prediction.refused else {"predicted": prediction.value}


def _baselines(known: CurveTable, run: str, series: Series) -> dict[str, float]:
    curve = known.get(run, series)
    assert curve is not None
    past = relevant(curve, float(PYTHIA_TOTAL_TOKENS))
    return {name: method(past, float(PYTHIA_TOTAL_TOKENS)) for name, method in _BASELINES.items()}


def _truth(whole: CurveTable, run: str, series: Series) -> float:
    curve = whole.get(run, series)
    assert curve is not None and curve.step_C[-1] == 143_000
    return float(curve.value_C[-1])


def _add(errors: dict[str, list[float]], predicted: Mapping[str, float], truth: float) -> None:
    for name, value in predicted.items():
        errors.setdefault(name, []).append(abs(value - truth))
