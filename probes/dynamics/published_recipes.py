"""Published scores of the runs whose recipes come with the package: Amber, OpenLLaMA, and finals measured elsewhere.

Apart from `published.py`, whose curves are exact: these were read off figures or rounded in a table, and how far that
makes them wrong is kept beside them. What is known against them stands in `probes/dynamics/published/README.md`.
No losses were published by tokens, and none are here.
"""

from __future__ import annotations

import csv
import lzma
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from probes.dynamics.published import folder
from probes.dynamics.table import CurveTable, RunFacts, Series, TaskCurve, make_curve
from probes.dynamics.tasks import chance_of, domain_of

AMBER_TOKENS_PER_STEP = 4_587_520
AMBER_STEPS_PER_CHECKPOINT = 762
AMBER_CHECKPOINTS = 360
OPENLLAMA_TOTAL_TOKENS = 250_000 * 4_194_304.0
"""1,048.6B, which its README calls 1T; the 13B model had half the batch (openlm-research/open_llama#74)."""
FULL_ITEMS: Mapping[str, int] = {
    "anli_r1": 1000,
    "anli_r2": 1000,
    "anli_r3": 1200,
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "hellaswag": 10_042,
    "mmlu": 14_042,
    "openbookqa": 500,
    "piqa": 1838,
    "record": 10_000,
    "rte": 277,
    "truthfulqa_mc1": 817,
    "truthfulqa_mc2": 817,
    "wic": 638,
    "winogrande": 1267,
    "gsm8k": 1319,
    "humaneval": 164,
}
"""Items that lm-eval scores of each task; standard errors, which nobody published, are binomial with these."""
NEW_NAMES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("truthfulqa_mc", "mc1"): ("truthfulqa_mc1", "acc"),
    ("truthfulqa_mc", "mc2"): ("truthfulqa_mc2", "acc"),
    ("hendrycksTest", "acc"): ("mmlu", "acc"),
}
"""Task and metric before lm-eval 0.4, and what they are called since."""

_DIGITISED, _ROUNDED_PERCENT, _ROUNDED = 0.005, 0.00005, 0.005
_WITHDRAWN = ("cb", "wsc")
_NO_TASK = ("Average", "ddboolq")
_FIRST_PREVIEW, _FIRST_PREVIEW_RUN = "Open LLaMA 7B Preview 200B Tokens", "open_llama_7b_preview_200bt"
_OPENLLAMA = {
    "OpenLLaMA 7B 400BT": ("open_llama_7b", 400e9),
    "OpenLLaMA 7B 700BT": ("open_llama_7b", 700e9),
    "OpenLLaMA 7B": ("open_llama_7b", OPENLLAMA_TOTAL_TOKENS),
    "OpenLLaMA 3B 350BT": ("open_llama_3b", 350e9),
    "OpenLLaMA 3B 600BT": ("open_llama_3b", 600e9),
    "OpenLLaMA 3B": ("open_llama_3b", OPENLLAMA_TOTAL_TOKENS),
    "OpenLLaMA 13B 600BT": ("open_llama_13b", 600e9),
    "OpenLLaMA 13B": ("open_llama_13b", OPENLLAMA_TOTAL_TOKENS),
    "OpenLLaMA 7Bv2": ("open_llama_7b_v2", OPENLLAMA_TOTAL_TOKENS),
    "OpenLLaMA 3Bv2": ("open_llama_3b_v2", OPENLLAMA_TOTAL_TOKENS),
}
"""Labels of the README's columns, with run and tokens. The labels of 2023-05-16 (`400B Tokens`) repeat these."""
_SIZES = {"3b": 3_426_473_600.0, "7b": 6_738_415_616.0, "13b": 13_015_864_320.0}
"""All parameters, embeddings included, by the configurations on the hub."""
_FINALS = {
    "Amber (model card)": RunFacts(name="", family="Amber", parameters=_SIZES["7b"]),
    "Amber (Open LLM Leaderboard)": RunFacts(name="", family="Amber", parameters=_SIZES["7b"]),
    "LLaMA 7B": RunFacts(name="", family="LLaMA", parameters=_SIZES["7b"]),
    "LLaMA 13B": RunFacts(name="", family="LLaMA", parameters=_SIZES["13b"]),
    "GPT-J 6B": RunFacts(name="", family="GPT-J", parameters=6_053_381_344.0),
}
_FINAL_TOKENS = {"LLaMA 7B": 1.0e12, "LLaMA 13B": 1.0e12, "GPT-J 6B": 402e9}


@dataclass(frozen=True, slots=True)
class PublishedCurve:
    """A curve and how far its numbers may be from those that were measured.

    Attributes:
        curve: as in the table; its standard errors are binomial.
        error_C: half widths; what was measured lies evenly within them.
    """

    curve: TaskCurve
    error_C: np.ndarray


def amber() -> CurveTable:
    """Amber-7B's four curves, over tokens it was trained on; the run is called Amber."""
    return _table([_amber_facts()], amber_curves())


def openllama() -> CurveTable:
    """OpenLLaMA's three sizes and its second version's two, one to three checkpoints each, named as on the hub.

    Without the first preview, which is another run, and without CB and WSC, which its authors withdrew.
    """
    return _table(_openllama_facts(), openllama_curves())


def openllama_first_preview() -> CurveTable:
    """The first preview at 200B tokens: of a run that was given up, with a tokenizer that lost newlines."""
    facts = RunFacts(
        name=_FIRST_PREVIEW_RUN,
        family="OpenLLaMA first preview",
        parameters=_SIZES["7b"],
        total_tokens=OPENLLAMA_TOTAL_TOKENS,
    )
    return _table([facts], first_preview_curves())


def finals() -> CurveTable:
    """Finals alone: Amber by its card and by the Open LLM Leaderboard, LLaMA and GPT-J as OpenLLaMA measured them."""
    ends = _FINAL_TOKENS | {name: amber_total_tokens() for name in _FINALS if name.startswith("Amber")}
    facts = [replace(told, name=name, total_tokens=ends[name]) for name, told in _FINALS.items()]
    return _table(facts, final_curves())


def amber_total_tokens() -> float:
    """Tokens Amber was trained on, 1,258.4B: 2,048 of each sample, without the 96 samples a chunk that are dropped."""
    return float(_amber_tokens(np.array([AMBER_CHECKPOINTS - 1.0]))[0])


@cache
def amber_curves() -> tuple[PublishedCurve, ...]:
    """The four curves; of HellaSwag, ARC and MMLU the last checkpoint is the model card's.

    A point's error is that of reading its height, ±0.005, and of reading its place, half of what lies between two
    points, times the slope there: early in HellaSwag the larger part.
    """
    rows: dict[Series, list[tuple[float, float]]] = {}
    with lzma.open(folder() / "amber_curves_digitised.csv.xz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            task, metric = NEW_NAMES.get((row["task"], row["metric"]), (row["task"], row["metric"]))
            place = float(row["checkpoint_approx"]), float(row["value_digitised"])
            rows.setdefault(Series(task, metric, int(row["shots"])), []).append(place)
    card = [one.curve for one in final_curves() if one.curve.run == "Amber (model card)"]
    last = {curve.series: curve.value_C[-1] for curve in card}
    found = []
    for series, points in rows.items():
        checkpoint_C, value_C = np.array(sorted(points)).T
        slope_C = np.gradient(value_C, checkpoint_C)
        error_C = np.hypot(_DIGITISED, 0.5 * np.median(np.diff(checkpoint_C)) * slope_C)
        columns = [_amber_tokens(checkpoint_C), value_C, error_C]
        # The card's TruthfulQA, 43.67, is not the curve's: it ends at 33.6.
        if series in last and series.task != "truthfulqa_mc2":
            end = (amber_total_tokens(), last[series], _ROUNDED_PERCENT)
            columns = [np.append(column, value) for column, value in zip(columns, end, strict=True)]
        found.append(_curve("Amber", series, list(zip(*columns, strict=True)), per_step=AMBER_TOKENS_PER_STEP))
    return tuple(found)


@cache
def openllama_curves() -> tuple[PublishedCurve, ...]:
    """All scores of the README's tables in their last version, ±0.005 by rounding."""
    return tuple(_rounded_curves(_OPENLLAMA))


@cache
def first_preview_curves() -> tuple[PublishedCurve, ...]:
    """Its column of the README's first table."""
    return tuple(_rounded_curves({_FIRST_PREVIEW: (_FIRST_PREVIEW_RUN, 200e9)}))


@cache
def final_curves() -> tuple[PublishedCurve, ...]:
    """A point each."""
    found = []
    with (folder() / "finals.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            series = Series(row["task"], row["metric"], int(row["num_fewshot"]))
            point = amber_total_tokens(), float(row["value"]), _ROUNDED_PERCENT
            found.append(_curve(row["run"], series, [point]))
    return (*found, *_rounded_curves({name: (name, tokens) for name, tokens in _FINAL_TOKENS.items()}))


PUBLISHED_CURVES: Mapping[str, Callable[[], Sequence[PublishedCurve]]] = {
    "published:amber": amber_curves,
    "published:openllama": openllama_curves,
    "published:openllama-first-preview": first_preview_curves,
    "published:finals": final_curves,
}
"""The curves with their errors, by the names of `probes.dynamics.load.PUBLISHED`."""


def published_error(curve: TaskCurve) -> np.ndarray:
    """Half widths of the errors of a curve that is itself a published one; zeros for any other."""
    for found in PUBLISHED_CURVES.values():
        for one in found():
            # Who scores the published weights again may have named that run as they are.
            same = (one.curve.run, one.curve.series) == (curve.run, curve.series)
            if same and np.array_equal(one.curve.value_C, curve.value_C):
                return one.error_C
    return np.zeros(len(curve))


def _rounded_curves(labels: Mapping[str, tuple[str, float]]) -> list[PublishedCurve]:
    """Curves of the columns of OpenLLaMA's README; of one cell's values over its history the latest counts."""
    cells: dict[tuple[str, str], float] = {}
    with (folder() / "open_llama_eval_history.csv").open(newline="") as file:
        for row in csv.DictReader(file):  # oldest revision first
            cells[row["model_label"], row["task/metric"]] = float(row["value"])
    rows: dict[tuple[str, Series], list[tuple[float, ...]]] = {}
    for (label, name), value in cells.items():
        task, _, metric = name.partition("/")
        if label in labels and task not in (*_WITHDRAWN, *_NO_TASK):
            run, tokens = labels[label]
            task, metric = NEW_NAMES.get((task, metric), (task, metric))
            rows.setdefault((run, Series(task, metric, 0)), []).append((tokens, value, _ROUNDED))
    return [_curve(run, series, found, per_step=_openllama_batch(run)) for (run, series), found in rows.items()]


def _curve(
    run: str, series: Series, rows: Iterable[tuple[float, ...]], *, per_step: float | None = None
) -> PublishedCurve:
    """A curve of (tokens, value, error) rows; steps are rounded, or unknown without tokens per step."""
    tokens_C, value_C, error_C = np.array(sorted(rows), np.float64).T
    step_C = np.round(tokens_C / per_step) if per_step else np.full(len(tokens_C), np.nan)
    stderr_C = np.sqrt(value_C * (1.0 - value_C) / (FULL_ITEMS[series.task] - 1))
    curve = make_curve(
        step_C,
        tokens_C,
        value_C,
        stderr_C,
        run=run,
        series=series,
        domain=domain_of(series.task),
        chance=chance_of(series.task, series.metric),
    )
    return PublishedCurve(curve, error_C)


def _table(facts: Iterable[RunFacts], curves: Iterable[PublishedCurve]) -> CurveTable:
    return CurveTable(facts, [one.curve for one in curves])


def _amber_tokens(checkpoint_C: np.ndarray) -> np.ndarray:
    """Tokens after checkpoint k, which may be read between two."""
    return np.asarray((checkpoint_C + 1.0) * AMBER_STEPS_PER_CHECKPOINT * AMBER_TOKENS_PER_STEP)


def _amber_facts() -> RunFacts:
    return RunFacts(name="Amber", family="Amber", parameters=_SIZES["7b"], total_tokens=amber_total_tokens())


def _openllama_facts() -> list[RunFacts]:
    return [
        RunFacts(
            name=name,
            family="OpenLLaMA v2" if name.endswith("_v2") else "OpenLLaMA v1",
            parameters=_SIZES[name.split("_")[2]],
            total_tokens=OPENLLAMA_TOTAL_TOKENS,
        )
        for name in dict.fromkeys(run for run, _ in _OPENLLAMA.values())
    ]


def _openllama_batch(run: str) -> float | None:
    if not run.startswith("open_llama"):
        return None
    return 2_097_152.0 if "13b" in run else 4_194_304.0
