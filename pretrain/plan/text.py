"""A plan as a page to read: memory in GiB, disk in powers of ten."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pretrain.data.epochs import MOST_EPOCHS
from pretrain.plan.layouts import LayoutOption
from pretrain.plan.memory import Memory
from pretrain.plan.plan import DevicePlan, Plan
from pretrain.plan.probing import ProbePlan
from pretrain.plan.storage import StoragePlan

_COLUMNS = 6
_DEFINITIONS = {"full_attention": "A: 6N + 12LHS", "causal": "B: 6N + 6LHS", "matmul": "C: 6N"}
_GIB = 2**30
_KERNELS = ("layers", "loss", "weight_gradients", "optimizer", "compile")
_LISTED = 4
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


def to_text(plan: Plan) -> str:
    """The plan as a page to read."""
    return "\n".join(line.rstrip() for line in _lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    model, layout, device = plan.model, plan.layout, plan.device
    yield f"{plan.name}, configuration {plan.config_hash}"
    yield layout.describe()
    yield ""
    yield _row("Parameters", f"{plan.parameters:,}")
    yield _row("  rows of padding", f"{plan.padding_parameters:,} more: {model.padded_vocab_size:,} rows")
    yield _row("Tokens a step", f"{plan.tokens_per_step:,}")
    yield _row("  microbatches", f"{layout.num_microbatches:,} of {layout.micro_batch_size} sequences a rank")
    yield _row("Steps", f"{plan.steps:,}")
    yield _row("Tokens", f"{plan.tokens:,}")
    for name, epochs in plan.epochs.items():
        if epochs > MOST_EPOCHS:
            yield f"  {name} is read {epochs:.1f} times: after {MOST_EPOCHS:g}, text gains little (arXiv 2305.16264)"
    yield _row("FLOPs", "a token", "the run")
    for name, definition in _DEFINITIONS.items():
        yield _row(f"  {definition}", f"{plan.flops_per_token[name]:.4g}", f"{plan.total_flops[name]:.4g}")
    yield ""
    yield from _rank_lines(plan)
    if device is not None:
        yield _fit_line(device)
        yield ""
        yield from _time_lines(device, plan)
    yield ""
    yield from _storage_lines(plan.storage, device)
    if device is None:
        yield ""
        yield "Time, probes and layouts that fit need a device: add cluster=a100_80gb, h100, … (configs/cluster)."
        return
    yield ""
    yield from _probe_lines(device.probe)
    if device.layouts:
        yield ""
        yield from _layout_lines(device.layouts)


def _rank_lines(plan: Plan) -> Iterator[str]:
    layout, shown = plan.layout, plan.ranks[:_COLUMNS]
    if len(plan.ranks) > _COLUMNS:
        shown = ([one for one in plan.ranks if one.at.tensor == 0] or plan.ranks)[:_COLUMNS]
    yield _row("Rank", *(f"{one.rank}" for one in shown), *["…"] * (len(plan.ranks) > len(shown)))
    yield _row("  stage, tensor rank", *(f"{one.at.pipeline}, {one.at.tensor}" for one in shown))
    yield _row("  layers", *(f"{one.layers}" for one in shown))
    yield _row("  parameters", *(f"{one.parameters:,}" for one in shown))
    small = max(one.memory_bytes.total for one in plan.ranks) < _GIB
    yield _row("Memory, MiB" if small else "Memory, GiB")
    for field in dataclasses.fields(Memory):
        values = [getattr(one.memory_bytes, field.name) for one in shown]
        if field.name != "buffers" or any(values):
            yield _row(f"  {field.name}", *(f"{value / (2**20 if small else _GIB):.2f}" for value in values))
    yield (
        f"  {plan.compute} weights, fp32 gradients, optimizer over {plan.optimizer_ranks:,} ranks; activations "
        f"{'with' if plan.keeps_scores else 'without'} scores,\n  recompute={plan.recompute}; momentary: the loss, or "
        f"a layer's backward. CUDA context, NCCL and fragmentation come on top."
    )
    yield from _kernel_lines(plan)
    places = layout.tensor * layout.pipeline
    if plan.covered:
        yield f"  Built and counted: {places} of {places} different shards; together they hold each element once."
    else:
        yield f"  Built and counted: {len(plan.ranks)} ranks of {places} different shards; rank=all builds all."


def _kernel_lines(plan: Plan) -> Iterator[str]:
    """The kernels that memory and time are counted with."""
    named = " ".join(f"{name}={str(plan.kernels[name]).lower()}" for name in _KERNELS)
    device = "this device" if plan.device is not None else "a CPU, since cluster.device is null"
    yield f"  Memory and time are those of {named},\n  which the configuration's kernels select on {device}."
    if plan.kernels["fp8"]:
        yield "  precision.fp8=true is counted as bf16: a run should need less and be faster."


def _fit_line(device: DevicePlan) -> str:
    spare = (device.usable_bytes - device.needed_bytes) / _GIB
    verdict = f"fits, {spare:.1f} GiB to spare" if device.fits else f"DOES NOT FIT, {-spare:.1f} GiB too much"
    share = 1 - device.usable_bytes / device.memory_bytes
    line = _row(
        "On the device",
        f"{verdict}: {device.needed_bytes / _GIB:.1f} of {device.usable_bytes / _GIB:.1f} GiB, {device.name} "
        f"({device.memory_bytes / _GIB:.0f} GiB, {share:.0%} kept back)",
    )
    if device.fits or device.layouts is None:
        return line
    if not device.layouts:
        return (
            f"{line}\n  No layout of this model and batch fits these devices: more of them, or ones with more memory."
        )
    return f"{line}\n  The fastest that fits: {_pasted(device.layouts[0])}"


def _time_lines(device: DevicePlan, plan: Plan) -> Iterator[str]:
    speed = device.throughput
    basis = "measured: cluster.tokens_per_second_per_device" if device.measured else "modelled, not measured"
    yield _row("Tokens a second", f"{speed.tokens_per_second:,.0f}, {_each(device, plan):,.0f} a device ({basis})")
    yield _row("  a step", f"{speed.step_seconds:.2f} s")
    if speed.mfu_full_attention is not None and speed.mfu_causal is not None:
        yield _row("  MFU", f"A {speed.mfu_full_attention:.1%}, B {speed.mfu_causal:.1%}")
    yield _row("  the run", f"{device.days:,.1f} days of training, without saves, probes and faults")
    parts = [(seconds, name) for name, seconds in speed.parts.items() if seconds >= 0.005 * speed.step_seconds]
    if len(parts) > 1:
        texts = [f"{name} {seconds / speed.step_seconds:.0%}" for seconds, name in sorted(parts, reverse=True)]
        yield _row("  spent on", ", ".join(texts))


def _each(device: DevicePlan, plan: Plan) -> float:
    return device.throughput.tokens_per_second / plan.layout.world_size


def _storage_lines(storage: StoragePlan, device: DevicePlan | None) -> Iterator[str]:
    yield _row("Saves", f"{storage.saves:,}, of which {storage.resumable:,} keep optimizer state")
    if storage.chunk_ends_left_out:
        yield _row("", "and where chunks of the data end, which the data says")
    yield _row("  with state", f"{_disk(storage.checkpoint_bytes)} each, 12 bytes a parameter")
    yield _row("  weights alone", f"{_disk(storage.weights_only_bytes)} each")
    yield _row("  exports", f"{storage.exports:,} in {storage.export_dtype}, {_disk(storage.export_bytes)} each")
    yield _row("  on disk at the end", _disk(storage.total_bytes))
    if storage.stall_seconds is not None:
        yield _row("  training waits", f"{storage.stall_seconds:.2f} s a save")
    if storage.write_seconds is not None:
        yield _row("  until written", f"{storage.write_seconds:,.0f} s a save")
    elif device is not None:
        yield _row("  until written", "give cluster.storage_gigabytes_per_second")


def _probe_lines(probe: ProbePlan) -> Iterator[str]:
    if probe.source not in ("plan", "published"):
        yield _row("Probes", f"none during training: {probe.source}")
        return
    counted = "counted in probe.plan" if probe.source == "plan" else "by published counts"
    tokens = f"{probe.tokens_full:,} tokens a pass, {counted}"
    if probe.source == "published" and not probe.tokens_full:
        tokens = "tokens not known; compile it (python -m probes compile) and give probe.plan"
    yield _row("Probes", f"suite {probe.suite}: {tokens}")
    fast = f", fast tier ({probe.tokens_fast:,} tokens) at {probe.fast_saves:,}" if probe.fast_saves else ""
    yield _row("  scored", f"at {probe.full_saves:,} saves{fast}")
    if probe.budget is not None:
        yield _row("  budget", f"{probe.budget:.2%} of wall time at most: saves that are too dear score less")
    if probe.tokens_full:
        least = "at least " if probe.unknown else ""
        yield _row("  cost", f"{least}{probe.seconds_per_pass:.1f} s a pass, {least}{probe.share:.3%} of training")
    if probe.estimated:
        yield _row("  estimated", f"examples in the prompts of {_listed(probe.estimated)}")
    if probe.unknown:
        yield _row("  not known", _listed(probe.unknown))
    if probe.generates:
        yield _row("  not counted", f"writing answers: {_listed(probe.generates)}")


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _layout_lines(options: list[LayoutOption]) -> Iterator[str]:
    yield "Layouts that fit, by predicted throughput (TP tensor, PP pipeline, CP context, MB micro batch):"
    for number, option in enumerate(options, start=1):
        layout, given = option.layout, "" if option.overrides else ", as given"
        sizes = [("TP", layout.tensor), ("PP", layout.pipeline), ("VP", layout.virtual_pipeline)]
        sizes += [("CP", layout.context), ("DP", layout.data), ("MB", layout.micro_batch_size)]
        text = " ".join(f"{name}{size}" for name, size in sizes if size > 1 or name in ("TP", "DP", "MB"))
        yield (
            f"  {number}. {option.tokens_per_second:,.0f} tokens/s, MFU B {option.mfu_causal or 0.0:.1%}, "
            f"{option.memory_bytes.total / _GIB:.1f} GiB: {text}, {option.sharing}, recompute={option.recompute}{given}"
        )
        if option.overrides:
            yield f"     {_pasted(option)}"


def _pasted(option: LayoutOption) -> str:
    return " ".join(option.overrides)


def _row(name: str, *values: str) -> str:
    if len(values) == 1:
        return f"{name:<24}{values[0]}"
    return f"{name:<24}" + "".join(f"{value:<18}" for value in values)


def _disk(count: int) -> str:
    size, unit = next((size, unit) for size, unit in _UNITS if count >= size or size == 1e6)
    return f"{count / size:,.2f} {unit}"
