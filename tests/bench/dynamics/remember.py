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

from probes.dynamics import chance, expectation, surface
from probes.dynamics.gp import Scores
from probes.dynamics.surface import Surface
from probes.dynamics.table import CurveTable, TaskCurve
from probes.dynamics.trust import Verdict
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
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    judge = chance.judge
    try:
        for owner, name, original in kept:
            setattr(owner, name, _remembering(original))
        chance.judge = _run_by_run(judge)
        yield
    finally:
        chance.judge = judge
        for owner, name, original in kept:
            setattr(owner, name, original)


def _run_by_run(judge: Callable[..., list[Verdict]]) -> Callable[..., list[Verdict]]:
    """Judges each run by itself, which gives the same verdicts; a run whose curves are the same objects only once."""
    results: dict[Any, tuple[list[Verdict], list[TaskCurve]]] = {}

    def call(table: CurveTable, *, runs: Sequence[str]) -> list[Verdict]:
        found = []
        for name in table.by_size(runs):
            curves = table.of_run(name)
            key = (table.runs[name], *map(id, curves))
            if key not in results:
                results[key] = (judge(CurveTable([table.runs[name]], curves)), curves)
            found += results[key][0]
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
