"""A task nobody measured on these sizes, from its siblings: OLMo's ladder and Pythia's question answering.

Parts of one benchmark are asked about too, from its other parts alone: MMLU's on the ladder, and CrowS-Pairs' on Pythia
(English; differences of log-likelihoods in nats). How far siblings are believed beside the loss alone was chosen on the
ladder's accuracies and on Pythia's standard data.

Baselines: the mean of the domain's other tasks, rescaled to the task by a line; the nearest size at the same tokens;
the scores other runs had at the same loss (the mean of the nearest, or a parabola, whichever is better). The ladder's
curves are averaged over five checkpoints, as its authors do before they fit scores.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from probes.dynamics.gp import Process
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.siblings import SINCE_SHARE, Rows, UnseenTask, aligned, predict_unseen
from probes.dynamics.surface import EARLIEST_SHARE
from probes.dynamics.table import CurveTable, Series
from tests.bench.dynamics.sets import SETS, markdown, mean, perplexity, sets, sizes, tokens_at

_LADDER_SIZES = ("190M", "370M", "760M", "1B")
_LADDER = [f"{size}-{length}xC" for size in _LADDER_SIZES for length in (1, 2, 5, 10)]
_C4 = Series("c4_en-validation", "ce_loss")
_KNOWLEDGE = ("mmlu", "arc", "boolq", "openbookqa")
"""The ladder's thirteen tasks in two domains: these, and commonsense."""
_QUESTION_ANSWERING = ("piqa", "arc_easy", "arc_challenge", "sciq")
_CROWS_PAIRS = "crows_pairs_english_"
_NEAREST = 5
_AVERAGE = 5


def figures(*, quick: bool) -> dict[str, Any]:
    """Errors by setting, ratios to the best baseline of each kind, coverage; and what is refused."""
    ladder = {
        f"{metric}, {mode}": _ladder(metric, mode)
        for metric in ("accuracy", "bits per byte")
        for mode in ("leave one size out", "smaller sizes")
        if not quick or (metric, mode) == ("accuracy", "leave one size out")
    }
    answering = {"steps ≥ 1,000": _pythia(1_000), "steps ≥ 3,000": _pythia(3_000)}
    mmlu = _mmlu()
    parts = {
        f"OLMo ladder, MMLU's parts, {metric}, smaller sizes": _ladder(metric, "smaller sizes", only="mmlu")
        for metric in ("accuracy", "bits per byte")
        if not quick
    }
    parts |= {
        f"Pythia {name}, CrowS-Pairs' parts, smaller sizes": _crows_pairs(deduped=name == "deduped")
        for name in ("standard", "deduped")
    }
    return {
        "ladder": ladder,
        "pythia_question_answering": answering,
        "parts_of_one_benchmark": parts,
        "pythia_mmlu": mmlu,
        "leave_one_out_ratio": max(
            found["predicted"] / min(found["domain_mean"], found["last_value"]) for found in ladder.values()
        ),
        "leave_one_out_ratio_to_same_loss": max(found["predicted"] / found["same_loss"] for found in ladder.values()),
        "pythia_ratio_to_best_baseline": answering["steps ≥ 1,000"]["ratio_to_best_baseline"],
    }


def table(figures: Mapping[str, Any]) -> str:
    """One row for each setting."""
    named = [(f"OLMo ladder, {name}", found) for name, found in figures["ladder"].items()]
    named += [(f"Pythia, smaller sizes, {name}", found) for name, found in figures["pythia_question_answering"].items()]
    named += list(figures["parts_of_one_benchmark"].items())
    rows = [
        [
            name,
            found["domain_mean"],
            found["last_value"],
            found["same_loss"],
            found["loss_alone"],
            found["predicted"],
            f"{found['coverage_80']:.2f}",
        ]
        for name, found in named
    ]
    head = [
        "a task unseen",
        "domain mean, rescaled",
        "nearest size",
        "same loss",
        "loss alone",
        "predicted",
        "80% held",
    ]
    return markdown(head, rows)


def _ladder(metric: str, mode: str, *, only: str = "") -> dict[str, Any]:
    whole = olmo_ladder()
    tasks = [one for one in _ladder_tasks(whole, metric) if one.task.startswith(only)]
    collected = _Collected()
    for size in _LADDER_SIZES[1:] if mode == "smaller sizes" else _LADDER_SIZES:
        own = [run for run in _LADDER if run.startswith(size + "-")]
        limit = whole.runs[own[0]].parameters or 0.0
        others = [
            run
            for run in _LADDER
            if run not in own and (mode != "smaller sizes" or (whole.runs[run].parameters or 0.0) < limit)
        ]
        fits: dict[Hashable, Process] = {}
        for run in own:
            found = predict_unseen(
                whole,
                run,
                tasks,
                measured=tasks,
                loss=_C4,
                learn_from=others,
                average_over=_AVERAGE,
                even_at_chance=True,
                fits=fits,
            )
            for one in found:
                domain = [t for t in tasks if _is_knowledge(t) == _is_knowledge(one.series)]
                collected.add(whole, one, domain=domain, loss=_C4, others=others, average_over=_AVERAGE)
    return collected.summary()


def _pythia(from_step: int) -> dict[str, Any]:
    """Question answering on 1B to 12B from the smaller sizes; siblings are all other tasks."""
    collected = _Collected()
    for (_, num_fewshot), (_, whole, tasks) in zip(SETS, sets(), strict=True):
        late = whole.select(runs=sizes(whole))
        late = CurveTable(late.runs.values(), [c.where(c.tokens_C >= tokens_at(from_step)) for c in late])
        targets = [one for one in tasks if one.task in _QUESTION_ANSWERING]
        order = sizes(whole)
        for position, run in enumerate(order[1:], 1):
            loss = perplexity(num_fewshot)
            found = predict_unseen(
                late,
                run,
                targets,
                measured=tasks,
                loss=loss,
                learn_from=order[:position],
                since_share=EARLIEST_SHARE,
                even_at_chance=True,
            )
            for one in found:
                collected.add(late, one, domain=targets, loss=loss, others=order[:position], since_share=EARLIEST_SHARE)
    return collected.summary()


def _crows_pairs(*, deduped: bool) -> dict[str, Any]:
    """Nine parts of one benchmark on 1.4B to 12B, each from the others and from smaller sizes."""
    collected = _Collected()
    whole = pythia(deduped=deduped, num_fewshot=0)
    order, loss = sizes(whole), perplexity(0)
    late = CurveTable(whole.runs.values(), [c.where(c.tokens_C >= tokens_at(1_000)) for c in whole])
    parts = [s for s in whole.series() if s.task.startswith(_CROWS_PAIRS) and s.metric == "likelihood_difference"]
    for position, run in enumerate(order[2:], 2):
        others = order[:position]
        found = predict_unseen(
            late,
            run,
            parts,
            measured=parts,
            loss=loss,
            learn_from=others,
            since_share=EARLIEST_SHARE,
            even_at_chance=True,
        )
        for one in found:
            collected.add(late, one, domain=parts, loss=loss, others=others, since_share=EARLIEST_SHARE)
    return collected.summary()


def _mmlu() -> dict[str, int]:
    """Pythia's MMLU subjects as unseen tasks of 12B: refused, or predicted."""
    refused = wanted = 0
    for deduped, num_fewshot in SETS:
        whole = pythia(deduped=deduped, num_fewshot=num_fewshot)
        order = sizes(whole)
        subjects = [s for s in whole.series() if s.task.startswith("hendrycksTest") and s.metric == "acc"]
        tasks = [replace(one, num_fewshot=num_fewshot) for one in _siblings_of_mmlu(num_fewshot)]
        found = predict_unseen(
            whole, order[-1], subjects, measured=tasks, loss=perplexity(num_fewshot), learn_from=order[:-1]
        )
        refused += sum(one.refused is not None for one in found)
        wanted += len(found)
    return {"subjects": wanted, "refused": refused}


def _siblings_of_mmlu(num_fewshot: int) -> list[Series]:
    return [Series(task, "acc", num_fewshot) for task in ("arc_easy", "sciq", "piqa", "lambada_openai")]


class _Collected:
    """Errors of predictions and baselines over many curves."""

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = {}
        self.by_task: dict[str, list[tuple[float, float]]] = {}
        self.inside: list[float] = []
        self.weights: list[float] = []
        self.refused: list[str] = []

    def add(
        self,
        table: CurveTable,
        found: UnseenTask,
        *,
        domain: Sequence[Series],
        loss: Series,
        others: Sequence[str],
        average_over: int = 1,
        since_share: float = SINCE_SHARE,
    ) -> None:
        if found.refused is not None:
            self.refused.append(f"{found.run} {found.series.task}")
            return
        siblings = [one for one in domain if one != found.series]
        columns = [*siblings, loss, found.series]
        known = aligned(table, others, columns, average_over=average_over, since_share=since_share)
        at = aligned(table, [found.run], columns, average_over=average_over, since_share=since_share, checkpoints=None)
        keep = np.isin(found.tokens_Q, at.tokens_R)
        assert keep.all() and len(at.tokens_R) == len(found.tokens_Q)
        truth_Q = at.value_RS[:, -1]
        sign = -1.0 if found.series.metric in ("bpb",) else 1.0
        guesses = {"predicted": sign * found.value_Q, "loss_alone": sign * found.alone_Q} | _baselines(
            table, known, at, others
        )
        for name, guess_Q in guesses.items():
            self.errors.setdefault(name, []).append(float(np.abs(guess_Q - truth_Q).mean()))
        value_Q = sign * truth_Q
        self.inside.append(float(((found.low_Q <= value_Q) & (value_Q <= found.high_Q)).mean()))
        self.weights.append(found.siblings_weight)
        pair = (self.errors["predicted"][-1], min(self.errors["nearest_loss"][-1], self.errors["loss_parabola"][-1]))
        self.by_task.setdefault(found.series.task, []).append(pair)

    def summary(self) -> dict[str, Any]:
        means = {name: mean(values) for name, values in self.errors.items()}
        means["same_loss"] = min(means["nearest_loss"], means["loss_parabola"])
        best = min(value for name, value in means.items() if name not in ("predicted", "loss_alone"))
        tasks = {task: tuple(map(mean, zip(*pairs, strict=True))) for task, pairs in self.by_task.items()}
        return means | {
            "coverage_80": mean(self.inside),
            "mean_weight_of_siblings": mean(self.weights),
            "ratio_to_best_baseline": means["predicted"] / best,
            "curves": len(self.inside),
            "refused": len(self.refused),
            "tasks_where_loss_alone_is_better": sorted(t for t, (ours, loss) in tasks.items() if ours > loss),
        }


def _baselines(table: CurveTable, known: Rows, at: Rows, others: Sequence[str]) -> dict[str, np.ndarray]:
    """Judged scores by the simple ways; the target is the last column, the loss the one before."""
    siblings_RS, loss_R, target_R = known.value_RS[:, :-2], known.value_RS[:, -2], known.value_RS[:, -1]
    centre_S, spread_S = siblings_RS.mean(axis=0), siblings_RS.std(axis=0)
    mean_R = ((siblings_RS - centre_S) / spread_S).mean(axis=1)
    mean_Q = ((at.value_RS[:, :-2] - centre_S) / spread_S).mean(axis=1)
    loss_Q = at.value_RS[:, -2]
    nearest_QK = np.argsort(np.abs(loss_R - loss_Q[:, None]), axis=1)[:, :_NEAREST]
    return {
        "domain_mean": np.polyval(np.polyfit(mean_R, target_R, 1), mean_Q),
        "last_value": _nearest_size(table, known, at, others),
        "nearest_loss": target_R[nearest_QK].mean(axis=1),
        "loss_parabola": np.polyval(np.polyfit(loss_R, target_R, 2), loss_Q),
    }


def _nearest_size(table: CurveTable, known: Rows, at: Rows, others: Sequence[str]) -> np.ndarray:
    """The score of the largest other run (or runs) at the tokens nearest to these."""
    size_R = np.array([table.runs[others[int(run)]].parameters or 0.0 for run in known.run_R])
    largest = np.flatnonzero(size_R == size_R.max())
    distance_QL = np.abs(np.log(known.tokens_R[largest]) - np.log(at.tokens_R)[:, None])
    return np.asarray(known.value_RS[largest, -1][distance_QL.argmin(axis=1)])


def _ladder_tasks(whole: CurveTable, metric: str) -> list[Series]:
    """Thirteen tasks, each in its test split where there is one: twins of a task are not its siblings."""
    wanted = ("bpb",) if metric == "bits per byte" else ("acc", "len_norm")
    chosen: dict[str, Series] = {}
    for one in whole.series():
        if one.metric in wanted:
            plain = one.task.replace("_val_", "_").replace("_test_", "_")
            if plain not in chosen or "_test_" in one.task:
                chosen[plain] = one
    return list(chosen.values())


def _is_knowledge(series: Series) -> bool:
    return series.task.startswith(_KNOWLEDGE)
