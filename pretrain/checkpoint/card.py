"""The model card of a published folder: where its weights come from, how to load them, and how they score.

Scores come after the save they belong to, so they have a place of their own, between two marks, that is filled in
later; what somebody adds outside the marks stays. The record is read as JSON lines: this room knows no probes.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain import __version__
from pretrain.checkpoint.digests import CARD_NAME
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.parity import Parity
from pretrain.checkpoint.tokenizer_parity import TokenizerMismatch
from pretrain.config.run import RunConfig
from pretrain.durable import replace_file
from pretrain.errors import CheckpointError
from pretrain.model.spec import ModelSpec

PROBES_NAME = "probes.jsonl"
_LOADING, _SCORES = "loading", "scores"
_DERIVED = re.compile("_per_|prob|margin|soft_log|rescaled")
"""Smooth and normalized forms of a task's figures: there are twenty of each, for curves."""
# Metrics that are a share of items answered: what a reader of `model-index` expects a task's figure to be.
_INDEXED = ("acc", "acc_norm", "exact_match", "mc2")
_NOT_EXACT = """
**The tokenizer files of this folder give other ids than the model was trained with.** {mismatch} For the ids
of training use `sentencepiece` with `tokenizer.model`.
"""

Score = Mapping[str, Any]


def card_text(
    name: str,
    spec: ModelSpec,
    *,
    sequence_length: int,
    dtype: str,
    tokenizer_mismatch: TokenizerMismatch | None,
    parity: Parity | None,
    origin: str,
) -> str:
    """A whole card, without scores.

    Args:
        name: of the folder.
        spec: the model.
        sequence_length: tokens it was trained on at a time.
        dtype: of the weights.
        tokenizer_mismatch: where `AutoTokenizer` gives other ids than training; None where it gives the same.
        parity: how far the files are from the live model; None where it was not measured.
        origin: Markdown about the run (`origin_text`).
    """
    tokens = "" if tokenizer_mismatch is None else _NOT_EXACT.format(mismatch=tokenizer_mismatch)
    said = f"Parity: {parity}." if parity else "Parity with the live model was not measured: there is no reference."
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- llama
- pretraining
- fineline
---
# {name}

A LLaMA-style base model: {spec.num_parameters:_} parameters, {spec.num_layers} layers, width {spec.hidden_size},
{spec.num_attention_heads} heads, {spec.num_query_groups} key/value heads, vocabulary {spec.vocab_size:_}, trained on
sequences of {sequence_length:_} tokens. Weights are {dtype}. {said}

{_section(_LOADING, _loading("PATH"))}
{tokens}
{origin}

{_section(_SCORES, "No scores yet.")}

No licence is stated: whoever publishes the weights chooses one (`license:` in the first lines), with an eye to those of
the data.

`sha256sum -c SHA256SUMS` checks every file but this one.
"""


def origin_text(manifest: Manifest, config: RunConfig | None = None, *, chunk_ends: Sequence[int] = ()) -> str:
    """Where weights come from: place in the run, hashes, layout, software, and the recipe in short.

    Args:
        manifest: of the checkpoint.
        config: the run's; None leaves the recipe out.
        chunk_ends: steps that complete a chunk of data, ascending.
    """
    meta, state = manifest.meta, manifest.meta.run_state
    rows: list[tuple[str, Any]] = [
        ("run", config.run.name if config else None),
        ("step", manifest.step),
        ("tokens", state.get("tokens")),
        ("samples", state.get("samples")),
        ("chunks of data completed", bisect_right(chunk_ends, manifest.step) if chunk_ends else None),
        *((f"tokens of {source}", count) for source, count in sorted((state.get("source_tokens") or {}).items())),
        ("configuration hash", meta.config_hash),
        ("identity hash", meta.identity_hash),
        ("tokenizer", meta.tokenizer_fingerprint),
        *((name.replace("_", " "), value) for name, value in sorted(meta.layout.items())),
        ("exported by", f"Fineline {__version__}"),
    ]
    text = f"Step {manifest.step:_}, {state.get('tokens', 0):_} tokens.\n\n## Origin\n\n{_table(('', ''), rows)}"
    return text if config is None else f"{text}\n\n## Recipe\n\n{_table(('', ''), list(_recipe(config, meta.model)))}"


def read_scores(run: Path) -> dict[int, list[Score]]:
    """What a run's record says, ordered, by step; of a measurement the last line counts, a line cut short does not.

    Raises:
        CheckpointError: there is a record that cannot be read.
    """
    try:
        lines = (run / PROBES_NAME).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{run / PROBES_NAME} cannot be read: {error.strerror}.") from error
    found: dict[tuple[Any, ...], Score] = {}
    for line in lines:
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and {"task", "metric", "value"} <= row.keys():
            names = (str(row.get(name, "")) for name in ("suite", "domain", "task", "metric", "plan_hash"))
            found[(row["step"], *names)] = row
    scores: dict[int, list[Score]] = {}
    for key in sorted(found):
        scores.setdefault(key[0], []).append(found[key])
    return scores


def complete_card(folder: Path, scores: Sequence[Score], *, loaded_from: str | None = None) -> bool:
    """Brings a published card up to date, by one rename.

    Args:
        folder: the published folder.
        scores: of its step, all there are; none leaves what the card says.
        loaded_from: arguments of `from_pretrained`, as Python; None leaves what the card says.

    Returns:
        Whether the card changed.

    Raises:
        CheckpointError: the card cannot be read or written.
    """
    path = folder / CARD_NAME
    try:
        before = path.read_text(encoding="utf-8")
        text = before if loaded_from is None else _with_section(before, _LOADING, _loading(loaded_from))
        if scores:
            text = _with_section(text, _SCORES, _score_table(scores))
            text = _with_index(text, _model_index(folder.name, scores))
        if text == before:
            return False
        replace_file(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} was not completed: {error}. Mend that and release again.") from error
    return True


def _loading(arguments: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({_quoted(arguments)}, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained({_quoted(arguments)})
```"""


def _quoted(arguments: str) -> str:
    return arguments if '"' in arguments else f'"{arguments}"'


def _recipe(config: RunConfig, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    train, schedule, optimizer = config.train, config.schedule, config.optimizer
    yield "layers, width, inner width", f"{spec.num_layers}, {spec.hidden_size}, {spec.ffn_hidden_size}"
    yield "steps of the whole run", config.total_steps
    yield "tokens of the whole run", config.total_tokens
    yield "sequences per step", train.global_batch_size
    yield "tokens per step", train.global_batch_size * train.sequence_length
    if train.batch_ramp:
        yield "batch ramp", ", ".join(f"{stage.global_batch_size} until {stage.until}" for stage in train.batch_ramp)
    yield "peak learning rate", f"{schedule.learning_rate:g}"
    if schedule.kind not in ("constant", "multi_step"):
        yield "last learning rate", f"{schedule.min_learning_rate:g}"
    yield "schedule", f"{schedule.kind}, warmup {schedule.warmup}"
    yield "AdamW", f"beta {optimizer.beta1:g} and {optimizer.beta2:g}, epsilon {optimizer.epsilon:g}"
    yield "weight decay", f"{optimizer.weight_decay:g} ({optimizer.decay})"
    yield "largest gradient norm", f"{optimizer.grad_clip:g}"
    yield "precision", config.precision.compute
    yield "seed", config.run.seed
    yield "sources", ", ".join(sorted(config.data.sources)) or None


def _score_table(scores: Sequence[Score]) -> str:
    rows = [
        (_task(row), row["metric"], row.get("num_fewshot"), _figure(row["value"]), _figure(row.get("stderr")))
        + (row.get("num_items"), row.get("suite"))
        for row in scores
        if not _DERIVED.search(row["metric"])
    ]
    head = ("task", "metric", "shots", "value", "stderr", "items", "suite")
    return f"## Scores\n\n{_table(head, rows)}\n\nMeasurements that are derived from these are left out here."


def _task(row: Score) -> str:
    return f"mean of {row.get('domain')}" if row["task"] == "mean" else str(row["task"])


def _model_index(name: str, scores: Sequence[Score]) -> str:
    """The hub's `model-index`; JSON is YAML."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in scores:
        if row["metric"] in _INDEXED and row["task"] != "mean" and isinstance(row["value"], int | float):
            shown = f"{row['metric']} ({row.get('num_fewshot') or 0}-shot)"
            metric = {"type": row["metric"], "value": round(row["value"], 6), "name": shown}
            tasks.setdefault(row["task"], []).append(metric)
    if not tasks:
        return ""
    results = [
        {"task": {"type": "text-generation"}, "dataset": {"type": task, "name": task}, "metrics": metrics}
        for task, metrics in tasks.items()
    ]
    lines = "".join(f"  - {json.dumps(result, ensure_ascii=False)}\n" for result in results)
    return f"model-index:\n- name: {json.dumps(name)}\n  results:\n{lines}"


def _with_index(text: str, index: str) -> str:
    """The card with another `model-index`, which is the last key of the front matter."""
    head, mark, body = text.partition("\n---\n")
    if not text.startswith("---\n") or not mark:
        return text  # somebody's own card
    kept = head.partition("\nmodel-index:")[0]
    return f"{kept}\n{index}---\n{body}"


def _section(name: str, body: str) -> str:
    return f"<!-- {name}: begin -->\n{body}\n<!-- {name}: end -->"


def _with_section(text: str, name: str, body: str) -> str:
    pattern = re.compile(f"<!-- {name}: begin -->.*?<!-- {name}: end -->", re.DOTALL)
    return pattern.sub(lambda _: _section(name, body), text, count=1)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    shown = [row for row in rows if row[1] is not None]
    lines = [" | ".join("" if cell is None else _cell(cell) for cell in row) for row in shown]
    return "\n".join(f"| {line} |" for line in [" | ".join(head), " | ".join("---" for _ in head), *lines])


def _cell(value: Any) -> str:
    text = f"{value:_}" if type(value) is int else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _figure(value: Any) -> str | None:
    if not isinstance(value, int | float):
        return None
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
