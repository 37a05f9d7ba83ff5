"""The same figures on the older Pythia, on which no setting was chosen: `--older-pythia FOLDER`.

FOLDER is `evals/pythia-v0` of a clone of EleutherAI/pythia. Nothing of it is committed: its files are read as any
folder of lm-eval's results. These are other runs than the published ones: some have 143,000 steps of 2,097,152 tokens,
others 71,500 steps of twice as many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from probes.dynamics.published import PYTHIA_TOKENS_PER_STEP, PYTHIA_TOTAL_TOKENS, pythia
from probes.dynamics.read_lm_eval import read_lm_eval
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, TaskCurve
from tests.bench.dynamics import state
from tests.bench.dynamics.modes import cases_of

_LEFT_OUT = "blimp"
"""67 tasks more would make the section eight times as long; the verdicts are asked without them."""
_FOLDERS = {0: "zero-shot", 5: "five-shot"}
_LAST_STEP_OF_LARGE_BATCHES = 71_500


def older_tables(folder: Path) -> dict[tuple[bool, int], CurveTable]:
    """The four sets, by whether the data is deduplicated and by examples in the prompt.

    Sets with no example have eight runs, those with five examples have five. In `five-shot` of 160M, 410M and 1.4B
    every file says in its configuration that there was no example, and its scores are those of `zero-shot`: these files
    are left out. LAMBADA's perplexity stands for the loss, as in the published sets.
    """
    return {(deduped, shots): _table(folder, deduped, shots) for deduped in (False, True) for shots in _FOLDERS}


def figures(*, quick: bool, folder: Path) -> dict[str, Any]:
    """Verdicts on healthy older runs and on faults put into them."""
    cases = []
    for (deduped, shots), table in older_tables(folder).items():
        name = f"older Pythia {'deduped' if deduped else 'standard'}, {shots}-shot"
        kept = table.select(keep=lambda curve: not curve.task.startswith(_LEFT_OUT))
        cases += cases_of(kept, source=name, chosen_on=False)
        if quick:
            break
    return {"state": state.figures_of(cases)}


def table(figures: Mapping[str, Any]) -> str:
    """The verdicts' tables."""
    return state.table(figures["state"])


def _table(folder: Path, deduped: bool, shots: int) -> CurveTable:
    facts: list[RunFacts] = []
    curves: list[TaskCurve] = []
    for name, known in pythia(deduped=deduped, num_fewshot=0).runs.items():
        run = name.removesuffix("-bf16")
        everything = read_lm_eval(folder / run / _FOLDERS[shots], tokens_per_step=PYTHIA_TOKENS_PER_STEP)
        read = [curve for curve in everything if curve.series.num_fewshot == shots]
        if not read:
            continue
        last = max(int(curve.step_C[-1]) for curve in read)
        factor = 2 if last == _LAST_STEP_OF_LARGE_BATCHES else 1
        facts.append(replace(known, name=run, total_tokens=float(PYTHIA_TOTAL_TOKENS)))
        curves += [_as_published(curve, run, factor) for curve in read]
    return CurveTable(facts, curves)


def _as_published(curve: TaskCurve, run: str, factor: int) -> TaskCurve:
    domain = LOSS_DOMAIN if curve.metric == "ppl" else curve.domain
    return replace(curve, run=run, tokens_C=curve.tokens_C * factor, domain=domain)
