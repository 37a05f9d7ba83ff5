"""Curves from a folder of lm-eval's result files, one or more for each checkpoint.

Read as `lm_eval --output_path` writes, now (`"acc,none"`, `n-shot`) and before 0.4 (`"acc"`, `config.num_fewshot`).
The step is taken from names: of files, folders, the revision or the model's path.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import ProbeError
from probes.dynamics.table import CurveTable, RunFacts, Series, TaskCurve, curve_of
from probes.dynamics.tasks import chance_of, domain_of
from probes.dynamics.tidy import family_in, size_in

_STEP = re.compile(r"(?:^|[^a-z])(?:global_?step|step|ckpt|checkpoint|iter)[-_=]?(\d+)", re.IGNORECASE)
_GENERIC = frozenset(
    {"export", "checkpoints", "checkpoint", "hf", "huggingface", "weights", "main", "model", "results"}
)
_FORMS = "step_1000, step1000, ckpt_1000, checkpoint-1000, iter_1000"


@dataclass(frozen=True, slots=True)
class _File:
    """What a result file tells of the model it is about."""

    path: Path
    content: Mapping[str, Any]
    run: str
    step: int
    parameters: float | None


def read_lm_eval(
    folder: Path,
    *,
    tokens_per_step: float | Callable[[str], float | None] | None = None,
    facts: Mapping[str, RunFacts] | None = None,
) -> CurveTable:
    """Reads all result files below a folder; of two scores of one checkpoint that of the later file name counts.

    A run is named by its model's name without the step (`EleutherAI/pythia-70m`, revision step1000, is `pythia-70m`),
    or by the folder where files do not tell it. Of a metric with filters others than `none` the filter stays in the
    name (`exact_match,strict-match`).

    Args:
        folder: searched with all folders below, for `results*.json` or, without any, every `.json` file.
        tokens_per_step: of all runs, or a function of the run's name.
        facts: of runs the files say less of.

    Raises:
        ProbeError: there are no results, a file is damaged, or a step or its tokens cannot be told.
    """
    try:
        named = sorted(folder.rglob("results*.json")) or sorted(folder.rglob("*.json"))
    except OSError as error:
        raise ProbeError(
            f"{folder} cannot be searched for results of lm-eval: {error}. Give the folder that holds them."
        ) from error
    files = [_described(path, folder) for path in named]
    found = [file for file in files if file is not None]
    if not found:
        raise ProbeError(
            f"{folder} holds neither a run (probes.jsonl, metrics.jsonl) nor results of lm-eval (a .json file with "
            f"results, as --output_path writes it). Give a run directory, such a folder, or a CSV or Parquet file."
        )
    rows: dict[tuple[str, Series], list[tuple[int, float, float, float]]] = {}
    for file in found:
        factor = tokens_per_step(file.run) if callable(tokens_per_step) else tokens_per_step
        if factor is None:
            raise ProbeError(
                f"{file.path} is of step {file.step} of {file.run}, and lm-eval does not record tokens. Say how many "
                f"a step is: --tokens-per-step N, or the column tokens_per_step of --runs."
            )
        for series, value, stderr in _scores(file.content):
            rows.setdefault((file.run, series), []).append((file.step, file.step * factor, value, stderr))
    runs = {file.run: _facts_of(file, facts or {}) for file in found}
    return CurveTable(runs.values(), [_curve(run, series, scores) for (run, series), scores in rows.items()])


def _curve(run: str, series: Series, scores: list[tuple[int, float, float, float]]) -> TaskCurve:
    metric = series.metric.partition(",")[0]
    chance = chance_of(series.task, metric)
    return curve_of(scores, run=run, series=series, domain=domain_of(series.task), chance=chance)


def _facts_of(file: _File, known: Mapping[str, RunFacts]) -> RunFacts:
    return known.get(file.run) or RunFacts(name=file.run, family=family_in(file.run), parameters=file.parameters)


def _described(path: Path, folder: Path) -> _File | None:
    """The file, if it holds results."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise ProbeError(
            f"{path} is not JSON: {error}. Evaluate that checkpoint again, or name a folder without the file."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return None
    config: dict[str, Any] = content["config"] if isinstance(content.get("config"), dict) else {}
    model = _model_arguments(config.get("model_args"))
    names = [*reversed(path.relative_to(folder).with_suffix("").parts), model.get("revision", "")]
    names += [*reversed(Path(model.get("pretrained", "")).parts), str(content.get("model_name", "")), folder.name]
    steps = [int(match[-1]) for name in names if (match := _STEP.findall(name))]
    if not steps:
        raise ProbeError(
            f"{path} does not tell its step. Put it into the name of the file or of a folder on the way to it, "
            f"as one of {_FORMS}; the model's path and its revision are looked at, too."
        )
    name = _model_name(model.get("pretrained", "")) or _model_name(str(content.get("model_name") or "")) or folder.name
    told = config.get("model_num_parameters")
    parameters = float(told) if isinstance(told, int | float) and told > 0 else size_in(name)
    return _File(path=path, content=content, run=name, step=steps[0], parameters=parameters)


def _model_arguments(told: Any) -> dict[str, str]:
    """`pretrained=…,revision=…`, which lm-eval records as one text or as a mapping."""
    if isinstance(told, Mapping):
        return {str(key): str(value) for key, value in told.items()}
    pairs = (part.partition("=") for part in str(told or "").split(","))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _model_name(path: str) -> str:
    """The last part of a model's path that names more than a step."""
    for part in reversed(Path(path).parts):
        name = _STEP.sub("", part).strip("-_. /")
        if name and name.lower() not in _GENERIC and not name.isdigit():
            return name
    return ""


def _scores(content: Mapping[str, Any]) -> Iterator[tuple[Series, float, float]]:
    for task, metrics in content["results"].items():
        if not isinstance(metrics, Mapping):
            continue
        shots = _shots(content, task)
        named = any("," in key for key in metrics)  # then what has no filter is no metric: `sample_len`
        for key, value in metrics.items():
            metric, comma, kept = str(key).partition(",")
            if metric.endswith("_stderr") or not _is_number(value) or (named and not comma):
                continue
            stderr: Any = metrics.get(f"{metric}_stderr,{kept}" if kept else f"{metric}_stderr")
            name = metric if kept in ("", "none") else f"{metric},{kept}"
            yield Series(str(task), name, shots), float(value), float(stderr) if _is_number(stderr) else math.nan


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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
