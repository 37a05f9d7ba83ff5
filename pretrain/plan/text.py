"""A plan as a page to read: memory in GiB, disk in powers of ten."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pretrain.plan.memory import Memory
from pretrain.plan.plan import Plan

_COLUMNS = 6
_DEFINITIONS = {"full_attention": "A: 6N + 12LHS", "causal": "B: 6N + 6LHS", "matmul": "C: 6N"}


def to_text(plan: Plan) -> str:
    """The plan as a page to read: memory in GiB, disk in powers of ten."""
    return "\n".join(line.rstrip() for line in _lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    model, layout, disk = plan.model, plan.layout, plan.disk
    yield f"{plan.name}, configuration {plan.config_hash}"
    yield layout.describe()
    yield ""
    yield _row("Parameters", f"{plan.parameters:,}")
    yield _row("  rows of padding", f"{plan.padding_parameters:,} more: {model.padded_vocab_size:,} rows")
    yield ""
    yield from _rank_lines(plan)
    yield ""
    yield _row("Tokens a step", f"{plan.tokens_per_step:,}")
    yield _row("  microbatches", f"{layout.num_microbatches:,} of {layout.micro_batch_size} sequences a rank")
    yield _row("Steps", f"{plan.steps:,}")
    yield _row("Tokens", f"{plan.tokens:,}")
    yield ""
    yield _row("Checkpoints", f"{disk.saves:,}, {_disk(disk.checkpoint_bytes)} each, 12 bytes a parameter")
    yield _row("  reduced to weights", f"{_disk(disk.weights_only_bytes)} each")
    yield _row("  exports", f"{disk.exports:,}, {_disk(disk.export_bytes)} each")
    yield _row("  on disk at the end", _disk(disk.total_bytes))
    yield ""
    yield _row("FLOPs", "a token", "the run")
    for name, definition in _DEFINITIONS.items():
        yield _row(f"  {definition}", f"{plan.flops_per_token[name]:.4g}", f"{plan.total_flops[name]:.4g}")


def _rank_lines(plan: Plan) -> Iterator[str]:
    layout, shown = plan.layout, plan.ranks[:_COLUMNS]
    if len(plan.ranks) > _COLUMNS:
        shown = ([one for one in plan.ranks if one.at.tensor == 0] or plan.ranks)[:_COLUMNS]
    yield _row("Rank", *(f"{one.rank}" for one in shown), *["…"] * (len(plan.ranks) > len(shown)))
    yield _row("  stage, tensor rank", *(f"{one.at.pipeline}, {one.at.tensor}" for one in shown))
    yield _row("  layers", *(f"{one.layers}" for one in shown))
    yield _row("  parameters", *(f"{one.parameters:,}" for one in shown))
    yield _row("Memory, GiB")
    for field in dataclasses.fields(Memory):
        yield _row(f"  {field.name}", *(f"{getattr(one.memory_bytes, field.name) / 2**30:.2f}" for one in shown))
    yield (
        f"  {plan.compute} weights, fp32 gradients, optimizer over {plan.optimizer_ranks:,} ranks; activations as "
        f"Korthikanti et al. 2022,\n  without scores, recompute={plan.recompute}. CUDA context, communication buffers "
        f"and fragmentation come on top."
    )
    places = layout.tensor * layout.pipeline
    if plan.covered:
        yield f"  Built and counted: {places} of {places} different shards; together they hold each element once."
    else:
        yield f"  Built and counted: {len(plan.ranks)} ranks of {places} different shards; rank=all builds all."


def _row(name: str, *values: str) -> str:
    if len(values) == 1:
        return f"{name:<24}{values[0]}"
    return f"{name:<24}" + "".join(f"{value:<18}" for value in values)


def _disk(count: int) -> str:
    return f"{count / 1e12:,.2f} TB" if count >= 1e12 else f"{count / 1e9:,.2f} GB"
