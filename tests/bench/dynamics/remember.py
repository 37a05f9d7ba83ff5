"""Remembers results of pure functions for the benchmark of verdicts: a fault in one task leaves the others' fits.

What is remembered depends on its arguments alone, so that every verdict is the one the product gives. Nothing outside
`remembered` is changed, and what it kept is forgotten at its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from probes.dynamics import chance, decay, expectation, falls, surface
from probes.dynamics.gp import Scores
from probes.dynamics.surface import Surface
from probes.dynamics.table import CurveTable, TaskCurve
from probes.dynamics.trust import TrustRule, Verdict, is_ability, judge
from tests.bench.dynamics import faults


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, equal fits and predictions of surfaces are made once, and a run is judged once for `trust`."""
    places: list[tuple[Any, str]] = [
        (surface, "fit_laws"),
        (surface, "fit"),
        (expectation, "fit_surfaces"),
        (Surface, "with_run"),
        (Surface, "predict"),
        (faults, "smooth"),
        (faults, "noise_of"),
    ]
    judging = (chance, decay, falls)
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    kept += [(module, "judge", judge) for module in judging]
    try:
        for owner, name, original in kept[: len(places)]:
            setattr(owner, name, _remembering(original))
        judge_once = _run_by_run(judge)
        for module, name, _ in kept[len(places) :]:
            setattr(module, name, judge_once)
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


def _run_by_run(judge: Callable[..., list[Verdict]]) -> Callable[..., list[Verdict]]:
    """Judges each run by itself, which gives the same verdicts, and equal curves of a run once."""
    results: dict[Any, list[Verdict]] = {}

    def call(table: CurveTable, *, runs: Sequence[str] | None = None, rule: TrustRule | None = None) -> list[Verdict]:
        found = []
        for name in table.by_size(table.runs if runs is None else runs):
            curves = [curve for curve in table.of_run(name) if is_ability(curve)]
            key = (table.runs[name], rule, *map(_key, curves))
            if key not in results:
                results[key] = judge(CurveTable([table.runs[name]], curves), rule=rule)
            found += results[key]
        return found

    return call


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    results: dict[Any, tuple[Any, Any]] = {}

    def call(*arguments: Any, **options: Any) -> Any:
        key = (_key(arguments), _key(options))
        if key not in results:
            # The arguments are kept with the result: objects that are known by their identity must not be freed.
            results[key] = (function(*arguments, **options), (arguments, options))
        return results[key][0]

    return call


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _digest([value])
    if isinstance(value, TaskCurve):
        arrays = [value.step_C, value.tokens_C, value.value_C, value.stderr_C]
        return (value.run, value.series, value.domain, value.chance, value.plan, _digest(arrays))
    if isinstance(value, CurveTable):
        return (tuple(value.runs.values()), tuple(map(_key, value)))
    if isinstance(value, Scores):
        return _digest([value.feature_PF, value.value_P, value.noise_P])
    if isinstance(value, dict):
        return tuple((name, _key(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    try:
        hash(value)
    except TypeError:
        return (type(value).__name__, id(value))
    return value


def _digest(arrays: Sequence[np.ndarray]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(str(array.shape).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.digest()
