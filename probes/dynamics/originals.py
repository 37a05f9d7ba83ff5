"""The originals a run can be put beside: which there are, what is to be known of them, which one a run repeats.

The comparison itself is `probes.dynamics.beside_original`; the numbers are in `probes.dynamics.published_recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from probes.dynamics.load import load_curves
from probes.dynamics.published_recipes import PUBLISHED_CURVES, PublishedCurve, published_error
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, Series

_AMBER_NOTES = (
    "TruthfulQA: Amber's model card says 43.67, its own curve ends at 33.6, as the Open LLM Leaderboard has it. The "
    "curve is used.",
    "MMLU: whether Amber's score is a mean over questions or over the 57 subjects was not published; here it is over "
    "questions. Another evaluation of the same final model gave 26.84 instead of 28.53.",
)
_OPENLLAMA_NOTES = (
    "OpenLLaMA was scored by lm-eval of May to July 2023, all zero-shot, to two decimals; that later versions ask the "
    "same was not checked. A prompt must begin with <s> (tokenizer.add_bos=true).",
    "Tokens of previews are those of their labels, which may be some 5B off: OpenLLaMA saved every 10.5B.",
)


@dataclass(frozen=True, slots=True)
class _Known:
    """Where an original lies, and what is to be known of it."""

    source: str
    run: str
    title: str
    notes: tuple[str, ...]


ORIGINALS: Mapping[str, _Known] = {
    "amber": _Known("published:amber", "Amber", "LLM360's Amber-7B", _AMBER_NOTES),
    "openllama_7b_v1": _Known("published:openllama", "open_llama_7b", "OpenLLaMA 7B v1", _OPENLLAMA_NOTES),
    "openllama_3b_v1": _Known("published:openllama", "open_llama_3b", "OpenLLaMA 3B v1", _OPENLLAMA_NOTES),
    "openllama_13b_v1": _Known("published:openllama", "open_llama_13b", "OpenLLaMA 13B v1", _OPENLLAMA_NOTES),
    "openllama_7b_v2": _Known("published:openllama", "open_llama_7b_v2", "OpenLLaMA 7B v2", _OPENLLAMA_NOTES[:1]),
    "openllama_3b_v2": _Known("published:openllama", "open_llama_3b_v2", "OpenLLaMA 3B v2", _OPENLLAMA_NOTES[:1]),
}
"""By the name `--original` takes: that of the recipe."""


@dataclass(frozen=True, slots=True)
class Original:
    """A run that others are put beside.

    Attributes:
        key: the name it was asked for by.
        title: its name in sentences.
        facts: its size and tokens.
        curves: its scores.
        notes: what is to be known of them.
    """

    key: str
    title: str
    facts: RunFacts
    curves: Mapping[Series, PublishedCurve]
    notes: tuple[str, ...] = ()


def find_original(
    text: str, *, run: str | None = None, load: Callable[[Sequence[str]], CurveTable] = load_curves
) -> Original:
    """The original of a name of `ORIGINALS`, or of anything `load_curves` reads.

    Args:
        text: the name or a path.
        run: which run of a path that holds several.
        load: reads a path.

    Raises:
        ProbeError: it is neither, or the path holds several runs and none is named.
    """
    known = ORIGINALS.get(text)
    if known is not None:
        return _read(
            load_curves([known.source]), known.run, source=known.source, key=text, title=known.title, notes=known.notes
        )
    try:
        table = load([text])
    except ProbeError as error:
        raise ProbeError(
            f"--original {text} is none of {', '.join(ORIGINALS)} and cannot be read as a path."
            f"{did_you_mean(text, ORIGINALS)} As a path: {error}"
        ) from error
    name = run or next(iter(table.runs))
    if name not in table.runs or (run is None and len(table.runs) > 1):
        what = f"has no run {run}" if run else f"holds {len(table.runs)} runs"
        raise ProbeError(
            f"--original {text} {what}: {', '.join(list(table.runs)[:12])}. Name one of them with --original-run."
        )
    told = next((one for one in ORIGINALS.values() if (one.source, one.run) == (text, name)), None)
    return _read(
        table,
        name,
        source=text,
        key=text,
        title=told.title if told else name,
        notes=told.notes if told else table.notes,
    )


def original_of(table: CurveTable, run: str) -> str | None:
    """The name in `ORIGINALS` of the recipe that a run of a table repeats, by its size and its name or tokens."""
    facts = table.runs[run]
    if any(one.run == run for one in ORIGINALS.values()) or not facts.parameters:
        return None
    plain = run.lower().replace("-", "_").replace("open_llama", "openllama")
    for key, known in ORIGINALS.items():
        told = _facts(known)
        if abs(facts.parameters / (told.parameters or 1.0) - 1.0) > 0.02:
            continue
        if key == "amber" and ("amber" in plain or _close(facts.total_tokens, told.total_tokens)):
            return key
        if "openllama" in plain and "openllama" in key and ("v2" in plain) == key.endswith("v2"):
            return key
    return None


def originals_in(table: CurveTable) -> list[str]:
    """Names in `ORIGINALS` of the originals that are runs of a table."""
    return [key for key, known in ORIGINALS.items() if known.run in table.runs]


def with_originals(table: CurveTable, originals: Sequence[Original]) -> CurveTable:
    """A table with the runs and curves of originals that it lacks."""
    new = {one.facts.name: one for one in originals if one.facts.name not in table.runs}
    curves = [published.curve for one in new.values() for published in one.curves.values()]
    return CurveTable([*table.runs.values(), *(one.facts for one in new.values())], [*table.curves, *curves])


def pairs_in(table: CurveTable) -> list[tuple[str, str]]:
    """Runs of a table with the original they belong beside, where it is in the table, too.

    That whose recipe the run repeats, or the only one there is.
    """
    present = originals_in(table)
    published = {ORIGINALS[key].run for key in present}
    found = []
    for run in table.by_size(table.runs):
        told = original_of(table, run)
        key = told if told in present else present[0] if len(present) == 1 else None
        if run not in published and key is not None:
            found.append((run, key))
    return found


def hints(table: CurveTable, runs: Sequence[str]) -> list[str]:
    """A sentence for each run that repeats a recipe: which original it can be put beside, and how."""
    found = [(run, key) for run in runs if (key := original_of(table, run)) is not None]
    return [
        f"{run} repeats the recipe of {ORIGINALS[key].title}: --original {key} puts it beside the published scores."
        for run, key in found
    ]


def _read(table: CurveTable, name: str, *, source: str, key: str, title: str, notes: tuple[str, ...]) -> Original:
    curves = {
        curve.series: PublishedCurve(
            curve, published_error(curve) if source in PUBLISHED_CURVES else np.zeros(len(curve))
        )
        for curve in table.of_run(name)
        if curve.domain != LOSS_DOMAIN
    }
    return Original(key, title, table.runs[name], curves, notes)


def _facts(known: _Known) -> RunFacts:
    return load_curves([known.source]).runs[known.run]


def _close(tokens: float | None, others: float | None) -> bool:
    return tokens is not None and others is not None and abs(tokens / others - 1.0) < 1e-3
