"""Whether the definitions are the published ones, and whether the trust rule trusts what it should and nothing else.

Eight tasks of Pythia's four sets, at the end and at every checkpoint; its 57 MMLU subjects and simulated guessing for
what many tasks do to a rule. A verdict at a checkpoint sees nothing later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probes.dynamics.decay import decaying_runs
from probes.dynamics.definitions import FINETASKS_SINCE_TOKENS, monotonicity, ordering_consistency
from probes.dynamics.published import PYTHIA_TOKENS_PER_STEP, olmo_ladder, pythia
from probes.dynamics.recommend import recommend, trusted_since
from probes.dynamics.table import CurveTable, Series, make_curve
from probes.dynamics.trust import TrustRule, Verdict, judge
from tests.bench.dynamics.pythia_reference import REFERENCES, RUNS
from tests.bench.dynamics.sets import SETS, markdown, sizes

EIGHT = tuple(reference.task for reference in REFERENCES)
_SHOULD = ("lambada_openai", "arc_easy", "piqa", "sciq")
_NEVER = ("wsc", "logiqa")
_ACCURACIES = ("acc", "acc_norm")
_SUBJECTS = 57
_SIMULATED_RUNS = 8


def figures(*, quick: bool) -> dict[str, Any]:
    """Reproduction, who is trusted where, decay flags by step, multiplicity, and the time that 20,000 curves take."""
    trusted: dict[str, Any] = {}
    decay: dict[str, Any] = {}
    subjects: dict[str, Any] = {}
    for deduped, num_fewshot in SETS:
        name = f"{'deduped' if deduped else 'standard'}, {num_fewshot}-shot"
        table = pythia(deduped=deduped, num_fewshot=num_fewshot)
        verdicts = judge(table)
        trusted[name] = _trusted(table, verdicts)
        decay[name] = _decay(table)
        subjects[name] = _subjects(table, verdicts)
    return {
        "definitions": _definitions(),
        "trusted": trusted,
        "trusted_since_step": {} if quick else _since(),
        "decay": decay,
        "mmlu_subjects": subjects,
        "simulated_guessing": _guessing(repeats=3 if quick else 20),
        "ladder_runs_that_decay": len(decaying_runs(olmo_ladder(), list(olmo_ladder().runs))),
        "seconds_20000_curves": _seconds(200 if not quick else 20) * (1 if not quick else 10),
    }


def table(figures: Mapping[str, Any]) -> str:
    """A row for each task: in how many of the 12 zero-shot runs from 410M on it is trusted and recommended."""
    zero = [part for name, part in figures["trusted"].items() if "0-shot" in name]
    five = [part for name, part in figures["trusted"].items() if "5-shot" in name]
    rows = []
    for task in EIGHT:
        since = figures["trusted_since_step"].get(task, {})
        rows.append(
            [
                task,
                _share(zero, task, "trusted"),
                _share(zero, task, "recommended"),
                _share(five, task, "trusted"),
                f"{min(since.values()):,}–{max(since.values()):,}" if since else "–",
            ]
        )
    head = ["task", "trusted, 0-shot", "recommended, 0-shot", "trusted, 5-shot", "trusted from step"]
    return markdown(head, rows)


def _definitions() -> dict[str, Any]:
    """How many of the reference statistics are met to the last of their digits."""
    table = pythia(deduped=False, num_fewshot=0)
    compared: dict[str, list[tuple[float, float]]] = {"spearman": [], "kendall": [], "scores": []}
    for reference in REFERENCES:
        found = [table.get(run, Series(reference.task, reference.metric, 0)) for run in RUNS]
        curves = [curve for curve in found if curve is not None]
        late = [curve.since_step(512) for curve in curves]
        spearman = monotonicity(np.stack([curve.value_C for curve in late]))
        compared["spearman"] += list(zip(map(float, spearman), reference.spearman, strict=True))
        order = np.stack([curve.value_C[curve.tokens_C >= FINETASKS_SINCE_TOKENS] for curve in curves])
        compared["kendall"].append((ordering_consistency(order), reference.kendall))
        compared["scores"] += [(float(c.value_C[-1]), f) for c, f in zip(curves, reference.final, strict=True)]
        compared["scores"] += [(float(c.value_C[0]), f) for c, f in zip(curves, reference.first, strict=True)]
    return {
        name: {
            "compared": len(pairs),
            "equal_to_4_decimals": sum(round(got, 4) == round(wanted, 4) for got, wanted in pairs),
            "largest_difference": max(abs(got - wanted) for got, wanted in pairs),
        }
        for name, pairs in compared.items()
    }


def _trusted(table: CurveTable, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Runs from 410M on that trust each task (by an accuracy) and that recommend it (by any metric)."""
    large = sizes(table)
    chosen = {run: {one.series.task for one in recommend(table, run, verdicts=verdicts)} for run in table.runs}
    passed = {run: {v.series.task for v in verdicts if v.run == run and v.trusted} for run in table.runs}
    passed_accuracy = {
        run: {v.series.task for v in verdicts if v.run == run and v.trusted and v.series.metric in _ACCURACIES}
        for run in table.runs
    }
    small = [run for run in table.runs if run not in large]
    return {
        "runs": len(large),
        "tasks": {
            task: {
                "trusted": sum(task in passed_accuracy[run] for run in large),
                "recommended": sum(task in chosen[run] for run in large),
            }
            for task in EIGHT
        },
        "all_four_recommended": sum(set(_SHOULD) <= chosen[run] for run in large),
        "never_trusted": not any(set(_NEVER) & passed[run] for run in table.runs),
        "small_runs_recommended": sum(len(chosen[run]) for run in small),
    }


def _decay(table: CurveTable) -> dict[str, Any]:
    """Which runs decay at each checkpoint, seen as it was then, by all that was measured."""
    large = set(sizes(table))
    steps = sorted({int(step) for curve in table for step in curve.step_C if step >= 3000})
    decays: dict[str, list[int]] = {run: [] for run in table.runs}
    for step in steps:
        curves = [curve.until(step * PYTHIA_TOKENS_PER_STEP) for curve in table]
        for run in decaying_runs(CurveTable(table.runs.values(), curves), list(table.runs)):
            decays[run].append(step)
    return {
        "looks_from_410m_on": len(steps) * len(large),
        "decays_from_410m_on": sum(len(decays[run]) for run in large),
        "decays_from_step": {run: min(found, default=None) for run, found in decays.items() if run not in large},
    }


def _subjects(table: CurveTable, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """MMLU's subjects that pass, with and without correction, by accuracy of the likeliest answer."""

    def passing(found: Sequence[Verdict]) -> list[Verdict]:
        return [
            v for v in found if v.trusted and v.series.task.startswith("hendrycksTest") and v.series.metric == "acc"
        ]

    corrected = passing(verdicts)
    return {
        "curves": sum(v.series.task.startswith("hendrycksTest") and v.series.metric == "acc" for v in verdicts),
        "uncorrected": len(passing(judge(table, rule=TrustRule(significance=1.0)))),
        "corrected": len(corrected),
        "corrected_below_2b": sum((v.parameters or 0.0) < 2e9 for v in corrected),
        "recommended": sum(
            one.series.task.startswith("hendrycksTest")
            for run in table.runs
            for one in recommend(table, run, verdicts=verdicts)
        ),
    }


def _guessing(*, repeats: int) -> dict[str, float]:
    """Mean number of 456 curves of guessing that pass: lasting offsets of items, a drift, and noise about it."""
    rng = np.random.default_rng(0)
    steps = np.array([512, 1000, 3000, *range(13_000, 144_000, 10_000)], float)
    uncorrected, corrected = [], []
    for _ in range(repeats):
        curves = [
            make_curve(
                steps,
                steps * PYTHIA_TOKENS_PER_STEP,
                0.25 + rng.normal(0, 0.03) + np.cumsum(rng.normal(0, 0.006, 17)) + rng.normal(0, 0.012, 17),
                np.full(17, 0.03),
                run=f"run-{run}",
                series=Series(f"subject-{subject}", "acc", 0),
                domain="examination",
                chance=0.25,
            )
            for run in range(_SIMULATED_RUNS)
            for subject in range(_SUBJECTS)
        ]
        made = CurveTable([], curves)
        uncorrected.append(sum(v.trusted for v in judge(made, rule=TrustRule(significance=1.0))))
        corrected.append(sum(v.trusted for v in judge(made)))
    return {
        "curves": _SIMULATED_RUNS * _SUBJECTS,
        "uncorrected": float(np.mean(uncorrected)),
        "corrected": float(np.mean(corrected)),
    }


def _since() -> dict[str, dict[str, int]]:
    """Step from which each task could be trusted by an accuracy at every later look, by run; zero-shot."""
    found: dict[str, dict[str, int]] = {task: {} for task in EIGHT}
    for deduped in (False, True):
        whole = pythia(deduped=deduped, num_fewshot=0)
        eight = whole.select(keep=lambda curve: curve.task in EIGHT and curve.metric in _ACCURACIES)
        for run in sizes(whole):
            for series, tokens in trusted_since(eight, run).items():
                step = round(tokens / PYTHIA_TOKENS_PER_STEP)
                found[series.task][run] = min(step, found[series.task].get(run, step))
    return found


def _seconds(runs: int) -> float:
    """CPU time of judging that many runs of 100 tasks and 150 checkpoints."""
    rng = np.random.default_rng(0)
    steps = np.arange(1, 151) * 1000.0
    made = CurveTable(
        [],
        [
            make_curve(
                steps,
                steps * 1e6,
                0.25 + rng.normal(0, 0.01, 150),
                np.full(150, 0.02),
                run=f"run-{run}",
                series=Series(f"task-{task}", "acc"),
                domain="knowledge",
                chance=0.25,
            )
            for run in range(runs)
            for task in range(100)
        ],
    )
    start = time.process_time()
    judge(made)
    return time.process_time() - start


def _share(parts: Sequence[Mapping[str, Any]], task: str, what: str) -> str:
    return f"{sum(part['tasks'][task][what] for part in parts)} of {sum(part['runs'] for part in parts)}"
