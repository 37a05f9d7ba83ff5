"""Curves from lm-eval's result files, one or more for each checkpoint.

Read as `lm_eval --output_path` writes, now (`"acc,none"`, `n-shot`) and before 0.4 (`"acc"`, `config.num_fewshot`).
Steps, and tokens where they are told, are taken from names: `probes.dynamics.checkpoint_names`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import ProbeError
from pretrain.track.legible import legible_count
from probes.dynamics.checkpoint_names import STEP_FORMS, Place, model_in, place_in
from probes.dynamics.compressed import COMPRESSED, content_of, plain_name
from probes.dynamics.metrics import plain
from probes.dynamics.positions import TokensPerStep
from probes.dynamics.table import CurveTable, RunFacts, Series, TaskCurve, make_curve
from probes.dynamics.tasks import chance_of, domain_of
from probes.dynamics.tidy import family_in, size_in
from probes.dynamics.valid_scores import Scores, checked

_ENDINGS = ("", *COMPRESSED)
_TOKENS_DISAGREE = 0.05
"""Relative difference between the tokens in a name and those of `--tokens-per-step` from which it is said."""
_IN_PERCENT = {"squadv2": ("f1",), "scrolls": ("em",)}
"""Metrics that lm-eval's own definitions give in percent, by how the task's name begins; the others are shares."""


@dataclass(frozen=True, slots=True)
class _File:
    """What a result file tells of the model it is about."""

    path: Path
    content: Mapping[str, Any]
    run: str
    place: Place
    parameters: float | None


@dataclass(frozen=True, slots=True)
class _Score:
    """One score of one file."""

    step: int
    tokens: float
    value: float
    stderr: float
    path: Path


def read_lm_eval(
    folder: Path, *, tokens_per_step: TokensPerStep = None, facts: Mapping[str, RunFacts] | None = None
) -> CurveTable:
    """Reads all result files below a folder, or one file.

    A run is named by its model's name without the step (`EleutherAI/pythia-70m`, revision step1000, is `pythia-70m`),
    by the file's name before the step, or by the folder where files do not tell it. Of a metric with filters others
    than `none` the filter stays in the name (`exact_match,strict-match`). A checkpoint that was evaluated again has the
    scores of the later file name in that folder; other scores of it in another folder are an error. Scores are checked
    as those of tables are, but for their unit: that belongs to the task, so that one may be in percent.

    Args:
        folder: searched with all folders below, for `results*.json` or, without any, every `.json` file.
        tokens_per_step: of all runs, or a function of the run's name. Not needed where names tell tokens.
        facts: of runs the files say less of.

    Raises:
        ProbeError: there are no results, a file is damaged, a step or its tokens cannot be told, two files differ, or
            a score is impossible.
    """
    found = [file for path in _result_files(folder) if (file := _described(path, folder)) is not None]
    if not found:
        raise ProbeError(
            f"{folder} holds neither a run (probes.jsonl, metrics.jsonl) nor results of lm-eval (a .json file with "
            f"results, as --output_path writes it). Give a run directory, such a folder, or a table of scores."
        )
    notes: list[str] = []
    scores: dict[tuple[str, Series], list[_Score]] = {}
    for run, files in _by_run(found).items():
        factor = tokens_per_step(run) if callable(tokens_per_step) else tokens_per_step
        positions, said = _positions(run, files, factor)
        notes += said
        for file, tokens in zip(files, positions, strict=True):
            for series, value, stderr in _scores(file.content):
                one = _Score(file.place.step, tokens, value, stderr, file.path)
                scores.setdefault((run, series), []).append(one)
    runs = {file.run: _facts_of(file, facts or {}) for file in found}
    curves, said = _curves({of: _latest(*of, several) for of, several in scores.items()}, folder)
    return CurveTable(runs.values(), curves, notes=notes + said)


def _result_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    try:
        for pattern in ("results*.json", "*.json"):
            named = sorted(path for ending in _ENDINGS for path in folder.rglob(pattern + ending))
            if named:
                return named
    except OSError as error:
        raise ProbeError(
            f"{folder} cannot be searched for results of lm-eval: {error}. Give the folder that holds them."
        ) from error
    return []


def _by_run(files: Sequence[_File]) -> dict[str, list[_File]]:
    found: dict[str, list[_File]] = {}
    for file in files:
        found.setdefault(file.run, []).append(file)
    return found


def _positions(run: str, files: Sequence[_File], factor: float | None) -> tuple[list[float], list[str]]:
    """The tokens of each file, and what is to be said of them.

    What the user says of a step is exact. Names round: `step1000-tokens4B` are 4.42e9 tokens. Where the most exact name
    gives tokens of a step that suit all others, its ratio is used for all.
    """
    places = [file.place for file in files]
    if factor is not None:
        told = [place for place in places if place.step >= 0 and math.isfinite(place.tokens)]
        off = [place for place in told if abs(place.tokens - place.step * factor) > _slack(place, factor)]
        said = [
            f"{run}: at step {place.step:,} the name tells {legible_count(int(place.tokens))} tokens, but "
            f"{legible_count(int(factor))} tokens per step make {legible_count(int(place.step * factor))}. "
            "The latter is used."
            for place in off[:1]
        ]
        return [place.step * factor if place.step >= 0 else place.tokens for place in places], said
    lacking = next((file for file in files if not math.isfinite(file.place.tokens)), None)
    if lacking is not None:
        raise ProbeError(
            f"{lacking.path} is of step {lacking.place.step} of {run}; lm-eval does not record tokens, and no "
            f"name tells them. Say how many a step is: --tokens-per-step N, or a line {run} with "
            f"tokens_per_step in the file of --runs."
        )
    stepped = [place for place in places if place.step > 0]
    if stepped and all(place.step >= 0 for place in places):
        best = min(stepped, key=lambda place: place.rounding / max(place.tokens, 1.0))
        ratio = best.tokens / best.step
        if all(abs(place.tokens - place.step * ratio) <= _slack(place, ratio) for place in places):
            note = f"{run}: tokens are taken from names, {legible_count(int(ratio))} per step."
            return [place.step * ratio for place in places], [note]
    return [place.tokens for place in places], [f"{run}: tokens are taken from names, as they are rounded there."]


def _slack(place: Place, factor: float) -> float:
    """How far the tokens in a name may be off: one unit of the last digit, since some round and some cut off."""
    return 2.0 * place.rounding + _TOKENS_DISAGREE * place.step * factor


def _latest(run: str, series: Series, scores: Sequence[_Score]) -> list[_Score]:
    """Of scores of one checkpoint the last by file name; a missing one gives way to any other."""
    latest: dict[float, _Score] = {}
    for one in scores:  # by file name
        other = latest.get(one.tokens)
        if math.isnan(one.value):
            latest.setdefault(one.tokens, one)
            continue
        known = other is not None and not math.isnan(other.value)
        if known and other and one.path.parent != other.path.parent and one.value != other.value:
            raise ProbeError(
                f"{series} of {run} at step {one.step} is {other.value:.6g} in {other.path} and {one.value:.6g} in "
                f"{one.path}. Give a folder with one of the two."
            )
        latest[one.tokens] = one
    return list(latest.values())


def _curves(kept: Mapping[tuple[str, Series], Sequence[_Score]], folder: Path) -> tuple[list[TaskCurve], list[str]]:
    """The curves of scores that were checked, and what is to be said of them.

    Raises:
        ProbeError: a score is impossible; names its file.
    """
    owners = [of for of, scores in kept.items() for _ in scores]
    rows = [one for scores in kept.values() for one in scores]
    if not rows:
        raise ProbeError(f"{folder} has results of lm-eval, but no file of them holds a score.")
    base = folder.parent if folder.is_file() else folder
    valid = Scores(
        source=str(base),
        where=lambda row: str(rows[row].path.relative_to(base)),
        run_R=[run for run, _ in owners],
        unit_R=[f"{series} of {run}" for run, series in owners],
        name_R=[str(series) for _, series in owners],
        metric_R=[series.metric for _, series in owners],
        position=("tokens", np.array([one.tokens for one in rows])),
        value_R=np.array([one.value for one in rows]),
        stderr_R=np.array([one.stderr for one in rows]),
        percent_R=np.array([_is_in_percent(series) for _, series in owners]),
    )
    notes = checked(valid)
    step_R = np.array([one.step for one in rows], np.float64)
    curves, begin = [], 0
    for (run, series), scores in kept.items():
        here = slice(begin, begin + len(scores))
        begin += len(scores)
        curves.append(
            make_curve(
                step_R[here],
                valid.position[1][here],
                valid.value_R[here],
                valid.stderr_R[here],
                run=run,
                series=series,
                domain=domain_of(series.task),
                chance=chance_of(series.task, plain(series.metric)),
            )
        )
    return curves, notes


def _is_in_percent(series: Series) -> bool:
    return any(series.task.startswith(task) and plain(series.metric) in of for task, of in _IN_PERCENT.items())


def _facts_of(file: _File, known: Mapping[str, RunFacts]) -> RunFacts:
    return known.get(file.run) or RunFacts(name=file.run, family=family_in(file.run), parameters=file.parameters)


def _described(path: Path, folder: Path) -> _File | None:
    """The file, if it holds results."""
    try:
        content = json.loads(content_of(path))
    except ValueError as error:
        raise ProbeError(
            f"{path} is not JSON: {error}. Evaluate that checkpoint again, or name a folder without the file."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return None
    base = folder.parent if folder.is_file() else folder
    config: dict[str, Any] = content["config"] if isinstance(content.get("config"), dict) else {}
    model = _model_arguments(config.get("model_args"))
    inside = [*path.relative_to(base).parts[:-1], plain_name(path.name).removesuffix(".json")]
    parts = [*reversed(Path(model.get("pretrained", "")).parts), str(content.get("model_name") or "")]
    folders = [*reversed(inside), model.get("revision", "")]
    place = place_in([*folders, *parts, base.name], folders=[*folders, base.name])
    if place is None:
        raise ProbeError(
            f"{path} does not tell its step. Put it into the name of the file or of a folder on the way to it, "
            f"as one of {STEP_FORMS}; the model's path and its revision are looked at, too."
        )
    name = next((name for part in parts if (name := model_in(part))), "") or _named_by_files(inside, base)
    told = config.get("model_num_parameters")
    parameters = float(told) if isinstance(told, int | float) and told > 0 else size_in(name)
    return _File(path=path, content=content, run=name, place=place, parameters=parameters)


def _named_by_files(inside: Sequence[str], folder: Path) -> str:
    """A run's name by the file's name before the step, the folders below the one that was given, or that folder."""
    own = [inside[-1]] if place_in([inside[-1]]) is not None else []
    above = [folder.name, *(parent.name for parent in folder.resolve().parents)]
    return next((name for part in [*own, *inside[:-1], *above[:2]] if (name := model_in(part))), folder.name)


def _model_arguments(told: Any) -> dict[str, str]:
    """`pretrained=…,revision=…`, which lm-eval records as one text or as a mapping."""
    if isinstance(told, Mapping):
        return {str(key): str(value) for key, value in told.items()}
    pairs = (part.partition("=") for part in str(told or "").split(","))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _scores(content: Mapping[str, Any]) -> Iterator[tuple[Series, float, float]]:
    for task, metrics in content["results"].items():
        if not isinstance(metrics, Mapping):
            continue
        shots = _shots(content, task)
        named = any("," in key for key in metrics)  # then what has no filter is no metric: `sample_len`
        for key, value in metrics.items():
            metric, comma, kept = str(key).partition(",")
            if metric.endswith("_stderr") or (named and not comma) or not (_is_number(value) or value is None):
                continue
            stderr: Any = metrics.get(f"{metric}_stderr,{kept}" if kept else f"{metric}_stderr")
            name = metric if kept in ("", "none") else f"{metric},{kept}"
            yield Series(str(task), name, shots), _number(value), _number(stderr)


def _shots(content: Mapping[str, Any], task: str) -> int:
    """Examples in the prompt; -1 where the file does not say."""
    places = (
        (content.get("n-shot"), task),
        ((content.get("configs") or {}).get(task), "num_fewshot"),
        (content.get("config"), "num_fewshot"),
    )
    for mapping, key in places:
        told = mapping.get(key) if isinstance(mapping, Mapping) else None
        if isinstance(told, int | str) and str(told).isdigit():
            return int(told)
    return -1


def _number(value: Any) -> float:
    """The number, nan where there is none; lm-eval writes N/A for an error that it does not compute."""
    return float(value) if _is_number(value) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
