"""What the ranks of `test_memory_of_a_step` run: a real engine, whose every allocation of one step is counted."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.config.load import compose
from pretrain.config.run import RunConfig
from pretrain.engine.base import Batch
from pretrain.engine.build import build_engine, check_capabilities
from pretrain.engine.job import Job
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec

_ROWS_AT_A_TIME = 64


def measure(cases: list[list[str]]) -> list[dict[str, int]]:
    """Per list of overrides, this rank's bytes: of weights, between steps, and at a step's fullest moment."""
    job = Job(timeout_minutes=5)
    return [_measure(compose(overrides), job) for overrides in cases]


def _measure(config: RunConfig, job: Job) -> dict[str, int]:
    problems = list(check_capabilities(config, world_size=job.world_size))
    assert not problems, problems
    spec = ModelSpec.from_config(config.model, config.tokenizer.vocab_size)
    layout = ParallelLayout.create(config, world_size=job.world_size)
    batch = _batch(config, layout)
    with Allocations() as allocations:
        engine: Any = build_engine(config, spec, job.device)
        for module in (module for chunk in engine._chunks for module in chunk.modules()):
            if isinstance(module, torch.nn.RMSNorm):
                module.forward = functools.partial(_FusedNorm.apply, module.weight)  # type: ignore[method-assign]
        for group in getattr(engine, "_optimizer", engine).param_groups if config.engine.name == "megatron" else []:
            group["foreach"] = True  # torch's AdamW, as it is on CUDA
        for _ in range(2):  # the first makes the optimizer's state
            engine.train_step(batch, 1e-3)
        gc.collect()
        held = allocations.peak = allocations.total
        engine.train_step(batch, 1e-3)
    weights = {
        one.data_ptr(): one.nbytes() for c in engine._chunks for p in c.parameters() for one in [p.untyped_storage()]
    }
    engine.close()
    del engine
    gc.collect()
    return {"weights": sum(weights.values()), "held": held, "peak": allocations.peak}


def allocated(cases: list[list[str]]) -> list[int]:
    """Per list of overrides, the most that a GPU's allocator gave out in a step, in bytes."""
    job, found = Job(timeout_minutes=5), []
    for config in map(compose, cases):
        spec = ModelSpec.from_config(config.model, config.tokenizer.vocab_size)
        engine: Any = build_engine(config, spec, job.device)
        batch = _batch(config, ParallelLayout.create(config, world_size=job.world_size))
        for _ in range(2):  # the first makes the optimizer's state
            engine.train_step(batch, 1e-3)
        torch.cuda.reset_peak_memory_stats()
        engine.train_step(batch, 1e-3)
        found.append(torch.cuda.max_memory_allocated())
        engine.close()
        del engine
        gc.collect()
    return found


class Allocations(TorchDispatchMode):
    """Counts the storages of all tensors that operations make, while they live.

    torch's profiler does not see what gloo's threads are the last to hold. What a kernel has for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.peak = 0
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        old = self._known.get(key)
        if old is not None and old[0]() is not None:
            self.total += nbytes - old[1]  # one that was resized
        else:
            self.total += nbytes
        reference = (
            old[0]
            if old is not None and old[0]() is not None
            else weakref.ref(storage, functools.partial(self._gone, key))
        )
        self._known[key] = (reference, nbytes)
        self.peak = max(self.peak, self.total)

    def _gone(self, key: int, reference: Any) -> None:
        known = self._known.get(key)
        if known is not None and known[0] is reference:
            self.total -= self._known.pop(key)[1]


def _batch(config: RunConfig, layout: ParallelLayout) -> Batch:
    shape = (layout.num_microbatches, layout.micro_batch_size, config.train.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, config.tokenizer.vocab_size, shape).astype(np.int32)
    ends = None
    if config.data.document_mask:  # one document
        ends = np.full((*shape[:2], shape[2] - 1), shape[2] - 1, np.int32)
    samples = config.train.global_batch_size
    return Batch(tokens, first_sample=0, num_samples=samples, source_tokens={}, ends_MBS=ends)


class _FusedNorm(torch.autograd.Function):
    """RMSNorm that keeps what CUDA's kernel keeps; on CPU torch composes it, in fp32, of steps that keep more."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        out, reciprocal = torch.empty_like(rows), rows.new_empty(len(rows), 1, dtype=torch.float32)
        for part in torch.arange(len(rows)).split(_ROWS_AT_A_TIME):
            at = slice(int(part[0]), int(part[-1]) + 1)
            reciprocal[at] = rows[at].float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
            out[at] = (rows[at].float() * reciprocal[at]).to(x.dtype) * weight
        ctx.save_for_backward(weight, x, reciprocal)
        return out.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight, x, reciprocal = ctx.saved_tensors
        rows, grads = x.flatten(0, -2), gradients[0].reshape(-1, x.shape[-1])
        of_x, of_weight = torch.empty_like(rows), torch.zeros_like(weight, dtype=torch.float32)
        for part in torch.arange(len(rows)).split(_ROWS_AT_A_TIME):
            at = slice(int(part[0]), int(part[-1]) + 1)
            unit, grad = rows[at].float() * reciprocal[at], grads[at].float()
            of_weight += (grad * unit).sum(0)
            grad = grad * weight.float()
            of_x[at] = (reciprocal[at] * (grad - unit * (grad * unit).mean(-1, keepdim=True))).to(x.dtype)
        return of_weight.to(weight.dtype), of_x.view_as(x)
