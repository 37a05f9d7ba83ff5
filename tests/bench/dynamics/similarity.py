"""How alike tasks are across sizes, beside the ceiling, how stable that ranking is, and when abilities arise.

Eight tasks of Pythia 410M to 12B, standard and deduplicated; the ladder for the axes to align by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probes.dynamics.arising import agree, domains_arising, leads, order_of_arising
from probes.dynamics.onset import AT
from probes.dynamics.published import PYTHIA_TOKENS_PER_STEP, olmo_ladder, pythia
from probes.dynamics.similarity import MEASURES, SizeComparison, compare_sizes
from probes.dynamics.table import CurveTable, Series
from tests.bench.dynamics.pythia_reference import REFERENCES
from tests.bench.dynamics.sets import markdown, mean, sizes

_LADDER_TASKS = ("hellaswag_val", "arc_easy_test", "arc_challenge_test", "piqa_val", "socialiqa_val", "openbookqa_test")


def figures(*, quick: bool) -> dict[str, Any]:
    """Similarity and its stability by set, distances by axis, onsets by task, and how far runs agree on their order."""
    draws = 50 if quick else 400
    found: dict[str, Any] = {}
    for num_fewshot in (0, 5):
        both = _both(num_fewshot)
        found[f"{num_fewshot}-shot"] = _similarity(compare_sizes(both, draws=draws))
        for family in ("pythia", "pythia-deduped"):
            part = both.select(runs=[run for run, facts in both.runs.items() if facts.family == family])
            stability = compare_sizes(part, draws=draws).stability
            found[f"{num_fewshot}-shot"][f"stability_{family}_alone"] = dict(stability)
    zero = _both(0)
    return {
        "similarity": found,
        "ladder_distance_by_axis": _by_axis(),
        **_arising(zero, draws=50 if quick else 200),
    }


def table(figures: Mapping[str, Any]) -> str:
    """A row for each task, zero-shot, most alike first, and one for the stability of the ranking."""
    zero, five = figures["similarity"]["0-shot"], figures["similarity"]["5-shot"]
    rows: list[list[object]] = [
        [
            one["task"],
            f"{one['similarity']:.2f} [{one['low']:.2f}, {one['high']:.2f}]",
            f"{one['ceiling']:.2f}",
            f"{one['spearman']:.2f}",
            one["words"],
            _steps(figures["onset_step"].get(one["task"])),
        ]
        for one in zero["tasks"]
    ]
    stable, ceiling = zero["stability"]["similarity"], zero["ceiling_stability"]["similarity"]
    rows.append(["ranking, mean Kendall τ (0-shot)", f"{stable:.2f}", f"{ceiling:.2f}", "", "", ""])
    stable, ceiling = five["stability"]["similarity"], five["ceiling_stability"]["similarity"]
    rows.append(["ranking, mean Kendall τ (5-shot)", f"{stable:.2f}", f"{ceiling:.2f}", "", "", ""])
    return markdown(["task", "between sizes (80%)", "one size", "Spearman", "verdict", "onset, median step"], rows)


def _both(num_fewshot: int) -> CurveTable:
    """Eight tasks of both sets from 410M on: other data at one size is the ceiling."""
    parts = [pythia(deduped=deduped, num_fewshot=num_fewshot) for deduped in (False, True)]
    names = {run for part in parts for run in sizes(part)}
    wanted = {Series(one.task, one.metric, num_fewshot) for one in REFERENCES}
    facts = [fact for part in parts for name, fact in part.runs.items() if name in names]
    curves = [curve for part in parts for curve in part if curve.run in names and curve.series in wanted]
    return CurveTable(facts, curves)


def _similarity(compared: SizeComparison) -> dict[str, Any]:
    return {
        "tasks": [
            {
                "task": one.series.task,
                **{measure: getattr(one, measure) for measure in MEASURES},
                "low": one.low,
                "high": one.high,
                "ceiling": one.ceiling,
                "words": one.words,
            }
            for one in compared.tasks
        ],
        "stability": dict(compared.stability),
        "ceiling_stability": dict(compared.ceiling_stability),
        "agreement_with_ceiling": dict(compared.agreement),
    }


def _by_axis() -> dict[str, float]:
    """Mean distance in bits per byte between the ladder's sizes."""
    table = olmo_ladder()
    runs = [f"{size}-{length}xC" for size in ("190M", "370M", "760M", "1B") for length in (1, 2, 5, 10)]
    series = [Series(f"{task}_rc_5shot", "bpb") for task in _LADDER_TASKS]
    ladder = table.select(runs=runs)
    return {
        axis: mean([one.distance for one in compare_sizes(ladder, series=series, axis=axis, draws=2).tasks])
        for axis in ("tokens", "tokens_per_parameter", "flops", "loss")
    }


def _arising(both: CurveTable, *, draws: int) -> dict[str, Any]:
    """Onsets by task (median step, and runs that have one), leads between domains, and agreement between runs."""
    onsets = {
        run: {one.series: one for one in order_of_arising(both, run, draws=draws)} for run in both.by_size(both.runs)
    }
    steps: dict[str, dict[str, float]] = {}
    for reference in REFERENCES:
        found = [one[Series(reference.task, reference.metric, 0)].onset for one in onsets.values()]
        at = [onset.tokens / PYTHIA_TOKENS_PER_STEP for onset in found if onset.state == AT]
        steps[reference.task] = {"median": float(np.median(at)) if at else -1.0, "runs": len(at), "of": len(found)}
    families = {family: [run for run in onsets if both.runs[run].family == family] for family in _families(both)}
    between = [
        agree(onsets[first], onsets[second], first=first, second=second).tau
        for runs in families.values()
        for index, first in enumerate(runs)
        for second in runs[index + 1 :]
    ]
    standard, deduped = families.values()
    one_size = [
        agree(onsets[first], onsets[second], first=first, second=second).tau
        for first, second in zip(standard, deduped, strict=True)
    ]
    words: dict[str, dict[str, int]] = {}
    for run in onsets:
        for lead in leads(domains_arising(both, run, draws=draws)):
            pair = tuple(sorted((lead.first, lead.second)))
            word = lead.words if lead.words == "together" else f"{lead.first} first"
            words.setdefault(" / ".join(pair), {}).setdefault(word, 0)
            words[" / ".join(pair)][word] += 1
    return {
        "onset_step": steps,
        "order_tau_between_sizes": mean(between),
        "order_tau_one_size": mean(one_size),
        "leads": words,
    }


def _families(table: CurveTable) -> list[str]:
    return list(dict.fromkeys(facts.family for facts in table.runs.values()))


def _steps(onset: Mapping[str, float] | None) -> str:
    if onset is None or not onset["runs"]:
        return "never"
    return f"{onset['median']:,.0f} ({onset['runs']} of {onset['of']} runs)"
