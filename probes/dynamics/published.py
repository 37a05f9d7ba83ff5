"""Curves of published runs that come with the package: references for a run, and what the methods are proven on.

Numbers only, with their sources in `probes/dynamics/published/README.md`. Parameters are non-embedding where a family's
paper counts so.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, Series, TaskCurve
from probes.dynamics.tidy import read_tidy

PYTHIA_TOKENS_PER_STEP = 2_097_152
PYTHIA_TOTAL_TOKENS = 143_000 * PYTHIA_TOKENS_PER_STEP
_BATCH_TOKENS = {"0.25M": 262_144, "0.5M": 524_288, "1M": 1_048_576}
_PYTHIA_NON_EMBEDDING = {
    "70m": 18_915_328,
    "160m": 85_056_000,
    "410m": 302_311_424,
    "1b": 805_736_448,
    "1.4b": 1_208_602_624,
    "2.8b": 2_517_652_480,
    "6.9b": 6_444_163_072,
    "12b": 11_327_027_200,
}
"""arXiv 2304.01373, table 1."""
_LADDER_NON_EMBEDDING = {
    "190M": 190_354_176,
    "370M": 371_262_464,
    "760M": 758_220_288,
    "1B": 1_279_395_840,
    "peteish7": 6_887_575_552,
    "peteish13": 13_202_396_160,
}
"""arXiv 2412.04403 and its released tables."""

PYTHIA_TASKS = tuple(
    Series(task, metric)
    for task, metric in (
        ("lambada_openai", "acc"),
        ("piqa", "acc"),
        ("winogrande", "acc"),
        ("arc_easy", "acc"),
        ("arc_challenge", "acc_norm"),
        ("sciq", "acc"),
    )
)
"""The six tasks on which Pythia leaves chance; `num_fewshot` is to be filled in."""


@cache
def pythia(*, deduped: bool, num_fewshot: int) -> CurveTable:
    """One of the four sets: eight sizes of Pythia's standard or deduplicated data, 27 or 15 checkpoints each.

    LAMBADA's perplexity stands in for the loss, which was not published by step: it is in the loss domain.
    """
    whole = read_tidy(folder() / "pythia_evals.csv.xz", facts=_pythia_facts(), tokens_per_step=PYTHIA_TOKENS_PER_STEP)
    family = "pythia-deduped" if deduped else "pythia"
    runs = {name for name, facts in whole.runs.items() if facts.family == family}
    chosen = whole.select(runs=runs, keep=lambda curve: curve.num_fewshot == num_fewshot)
    return CurveTable(chosen.runs.values(), [_with_loss(curve) for curve in chosen])


@cache
def pythia_interventions() -> CurveTable:
    """Branches of Pythia's deduplicated runs, zero-shot: masculine pronouns became feminine, or nothing changed.

    `intervention-1.4b-deduped-long` sees the changed data from step 113,000 on, the other interventions from step
    133,000 on. `baseline-…` goes over the same steps with the data as it was. Only the steps after the branch were
    scored, every thousandth; the earlier scores are those of `pythia-…-deduped`.
    """
    named = {f"pythia-{size}-deduped": size for size in _PYTHIA_NON_EMBEDDING}
    whole = read_tidy(folder() / "pythia_evals_interventions.csv.xz", tokens_per_step=PYTHIA_TOKENS_PER_STEP)
    facts, curves = {}, []
    for curve in whole:
        model, _, run = curve.run.partition(":")
        parameters = _PYTHIA_NON_EMBEDDING[named[model]]
        facts[run] = _facts_of_pythia(run, "pythia-deduped", parameters)
        curves.append(replace(_with_loss(curve), run=run))
    return CurveTable(facts.values(), curves)


@cache
def pythia_batch_sizes() -> CurveTable:
    """Pythia's standard data in smaller batches, five-shot: 70M to 1.4B, each one batch size and 15 checkpoints."""

    def tokens_per_step(run: str) -> float:
        ending = run.rpartition("-")[2].removesuffix("tokBS")
        return float(_BATCH_TOKENS.get(ending, PYTHIA_TOKENS_PER_STEP))

    whole = read_tidy(folder() / "pythia_evals.csv.xz", tokens_per_step=tokens_per_step)
    sizes = {run: run.split("-")[1] for run in whole.runs if run.endswith("tokBS")}
    facts = [_facts_of_pythia(run, "pythia", _PYTHIA_NON_EMBEDDING[size]) for run, size in sizes.items()]
    return CurveTable(facts, [_with_loss(curve) for curve in whole if curve.run in sizes])


@cache
def olmo_ladder() -> CurveTable:
    """Sixteen runs of 190M to 1B at 1 to 10 times Chinchilla's tokens, four reruns, and OLMo 2 7B and 13B."""
    return read_tidy(folder() / "olmo_ladder_compact.csv.xz", facts=_ladder_facts())


def ladder_reference_fit() -> dict[str, Any]:
    """A refit of the ladder's laws, made apart from this package: parameters per task, predictions of 7B and 13B."""
    content: dict[str, Any] = json.loads((folder() / "olmo_ladder_reference_fit.json").read_text(encoding="utf-8"))
    return content


def _pythia_facts() -> dict[str, RunFacts]:
    found = {}
    for size, parameters in _PYTHIA_NON_EMBEDDING.items():
        for name, family in ((f"pythia-{size}", "pythia"), (f"pythia-{size}-deduped", "pythia-deduped")):
            label = "pythia-1b-bf16" if name == "pythia-1b" else name
            found[label] = _facts_of_pythia(label, family, parameters)
    return found


def _facts_of_pythia(run: str, family: str, parameters: int) -> RunFacts:
    return RunFacts(name=run, family=family, parameters=float(parameters), total_tokens=float(PYTHIA_TOTAL_TOKENS))


def _with_loss(curve: TaskCurve) -> TaskCurve:
    return replace(curve, domain=LOSS_DOMAIN) if curve.metric == "ppl" else curve


def _ladder_facts() -> dict[str, RunFacts]:
    found = {}
    for size, parameters in _LADDER_NON_EMBEDDING.items():
        lengths = [f"-{multiple}xC{rerun}" for multiple in (1, 2, 5, 10) for rerun in ("", "-rerun")]
        endings = ["_eval_full", "_eval_anneal", "_eval_final"] if size.startswith("peteish") else lengths
        for ending in endings:
            found[size + ending] = RunFacts(name=size + ending, family="olmo-ladder", parameters=float(parameters))
    return found


def folder() -> Path:
    """Where the published files lie."""
    return Path(str(resources.files("probes.dynamics"))) / "published"
