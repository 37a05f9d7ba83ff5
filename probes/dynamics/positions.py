"""Steps and tokens of the rows of a table: one made of the other, or both of the names of checkpoints and runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pretrain.errors import ProbeError
from probes.dynamics.checkpoint_names import STEP_FORMS, model_in, place_in
from probes.dynamics.columns import codes, listed
from probes.dynamics.read_table import Rows

TokensPerStep = float | Callable[[str], float | None] | None
"""Tokens of a step of all runs, or a function of the run's name; None where nothing is told."""


def complete_positions(columns: dict[str, Any], tokens_per_step: TokensPerStep, rows: Rows) -> list[str]:
    """Adds tokens from steps or steps from tokens, whichever is missing. Returns what is to be said of it.

    Raises:
        ProbeError: tokens cannot be known of a run.
    """
    if "step" not in columns and "tokens" not in columns:
        _places_from_names(columns, rows)
    notes = _checkpoints_as_runs(columns, rows)
    run_R, names = codes(columns["run"])
    told = [tokens_per_step(name) if callable(tokens_per_step) else tokens_per_step for name in names]
    factors = np.array([np.nan if factor is None else factor for factor in told])
    size = len(run_R)
    step_R, tokens_R = (columns.get(name, np.full(size, np.nan)) for name in ("step", "tokens"))
    lacking_R = np.isnan(tokens_R)
    tokens_R = np.where(lacking_R, np.where(step_R >= 0, step_R, np.nan) * factors[run_R], tokens_R)
    if "tokens" not in columns:
        unknown = [name for code, name in enumerate(names) if np.isnan(tokens_R[run_R == code]).all()]
        if unknown:
            raise ProbeError(_no_tokens(rows, unknown, factors, names))
    if "step" not in columns:
        step_R = np.round(tokens_R / factors[run_R])
    columns["step"], columns["tokens"] = step_R, tokens_R
    without = int((np.isnan(tokens_R) & np.isfinite(columns["value"])).sum())
    return [*notes, *([f"{rows.source}: {without} rows without tokens are left out."] if without else [])]


def _checkpoints_as_runs(columns: dict[str, Any], rows: Rows) -> list[str]:
    """Makes one run of rows whose runs are named after checkpoints (`model-step-50K-105b`), each at one place."""
    run_R, names = codes(columns["run"])
    axis_R = columns["tokens" if "tokens" in columns else "step"]
    renamed: dict[str, str] = {}
    step_R = columns.get("step", np.full(len(run_R), np.nan))
    for code, name in enumerate(names):
        place = place_in([name])
        if place is not None and place.step >= 0 and model_in(name) and len(np.unique(axis_R[run_R == code])) == 1:
            renamed[name] = model_in(name)
            step_R = np.where((run_R == code) & np.isnan(step_R), place.step, step_R)
    if len(renamed) < 2:
        return []
    columns["step"] = step_R
    columns["run"] = pa.array([renamed.get(names[code], names[code]) for code in run_R])
    first = next(iter(renamed))
    return [f"{rows.source}: {len(renamed)} runs are checkpoints by their names; {first} is one of {renamed[first]}."]


def _no_tokens(rows: Rows, unknown: Sequence[str], factors: np.ndarray, names: Sequence[str]) -> str:
    """Why a run's tokens are not known; what was told already is not asked for."""
    if np.isfinite(factors[names.index(unknown[0])]):
        return f"{rows.source}: no row of {unknown[0]} has a step. Fill the column step, or add a column tokens."
    others = [name for name, factor in zip(names, factors, strict=True) if np.isfinite(factor)]
    if others:
        return (
            f"{rows.source} has no column tokens, and the tokens of a step are told of {listed(others)}, not of "
            f"{listed(unknown)}. Add {unknown[0]} with its tokens_per_step to the file of --runs, or give "
            f"--tokens-per-step for all others."
        )
    return (
        f"{rows.source} has no column tokens. Add one, or say how many tokens a step of {unknown[0]} is: "
        f"--tokens-per-step, or a line {unknown[0]} with tokens_per_step in the file of --runs."
    )


def _places_from_names(columns: dict[str, Any], rows: Rows) -> None:
    """Steps and tokens from a column of checkpoints or revisions, or from the runs' names, which lose them.

    Raises:
        ProbeError: a name tells neither.
    """
    told = "checkpoint" if "checkpoint" in columns else "run"
    written = columns[told].to_pylist()
    places = {name: place_in([name], folders=[name]) for name in set(written)}
    untold = next((row for row, name in enumerate(written) if places[name] is None), None)
    if untold is not None:
        raise ProbeError(
            f"{rows.source}, {rows.where(untold)}: {told}={written[untold]} tells no step. Write it as one of "
            f"{STEP_FORMS}, or add a column step or tokens."
        )
    found = [place for name in written if (place := places[name]) is not None]
    columns["step"] = np.array([place.step for place in found], float)
    if any(math.isfinite(place.tokens) for place in found):
        columns["tokens"] = np.array([place.tokens for place in found])
    if told == "run":
        columns["run"] = pa.array([model_in(name) or name for name in written])
