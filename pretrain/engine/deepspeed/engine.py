"""DeepSpeed's ZeRO as an `Engine`, around the same model, scoring and checkpoint as Megatron-core's."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.config.run import RunConfig
from pretrain.engine.agree import failing_together
from pretrain.engine.base import Batch, GenerationRequest, PackedRows, PendingStep, StepResult, TokenLogProbs
from pretrain.engine.deepspeed.package import load_deepspeed
from pretrain.engine.initialize import initialize
from pretrain.engine.kernels import choose
from pretrain.engine.sharded import groups
from pretrain.engine.sharded.batches import Microbatch, microbatches
from pretrain.engine.sharded.blocks import blocks_of
from pretrain.engine.sharded.dynamics import Observer
from pretrain.engine.sharded.generate import generate_ids
from pretrain.engine.sharded.score import evaluation, score_rows
from pretrain.engine.sharded.token_losses import summed
from pretrain.model.gpt import build_chunks, recompute_options, transformer_config
from pretrain.model.spec import ModelSpec


class DeepSpeedEngine:
    """The live model of a run under DeepSpeed. Every rank builds one.

    Args:
        config: the resolved, checked configuration.
        spec: the model's derived sizes.
        device: where this rank computes.
    """

    def __init__(self, config: RunConfig, spec: ModelSpec, device: torch.device) -> None:
        deepspeed = load_deepspeed()
        from pretrain.engine.deepspeed.adam import build_adam
        from pretrain.engine.deepspeed.ds_config import FILE_NAME, build_ds_config
        from pretrain.engine.deepspeed.mpu import ModelParallelUnit
        from pretrain.engine.deepspeed.shards import DeepSpeedState

        self._config, self._spec, self._device = config, spec, device
        self._stage = config.engine.zero_stage or 0
        groups.start(config)
        self._replicas = groups.replicas()[1]
        self._kernels = choose(config, device)
        options = recompute_options(config, self._kernels)
        self._chunks = build_chunks(config, spec, transformer_config(config, spec, self._kernels, **options))
        (self._model,) = self._chunks
        self._positions = torch.arange(config.train.sequence_length, device=device)
        blocks = blocks_of(self._chunks)
        initialize(blocks, config.model, seed=config.run.seed)
        os.environ.setdefault("LOCAL_RANK", "0")  # it insists on one, launcher or not
        ds_config = build_ds_config(config, data_parallel=self._replicas)
        self._records = {FILE_NAME: json.dumps(ds_config, indent=2) + "\n"}
        self._deepspeed, *_ = deepspeed.initialize(
            model=self._model,
            optimizer=build_adam(config, list(blocks), device),
            mpu=ModelParallelUnit(),
            config=ds_config,
        )
        self._dtype = next(self._model.parameters()).dtype
        self._state = DeepSpeedState(self._deepspeed, blocks)

    def train_step(self, batch: Batch, learning_rate: float, *, observe: bool = False) -> PendingStep:
        """One update over all microbatches; not applied when loss or gradient is not finite."""
        observer = Observer(self._chunks, self._spec) if observe else None
        for group in self._deepspeed.basic_optimizer.param_groups:
            group["lr"] = learning_rate
        tokens = batch.num_samples * self._config.train.sequence_length
        totals = torch.zeros(2 if self._config.optimizer.z_loss else 1, dtype=torch.float64, device=self._device)
        with observer.activations() if observer else contextlib.nullcontext():
            for number, part in enumerate(microbatches(batch, [self._positions], dtype=self._dtype), start=1):
                is_last = number == len(batch.tokens_MBT)
                self._deepspeed.set_gradient_accumulation_boundary(is_last)
                totals += self._forward_backward(part, step_tokens=tokens)
                if not is_last:
                    self._deepspeed.step()  # counts microbatches
        if self._replicas > 1:
            dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
        loss, *rest = (totals / tokens).tolist()
        z_loss = rest[0] if rest else None
        if observer:
            observer.before_update(self._state.chunks(gradients=True))
        finite = math.isfinite(loss + (z_loss or 0.0))
        grad_norm = self._update_alone(finite) if self._stage == 0 else self._update()
        result = StepResult(
            loss=loss,
            tokens=tokens,
            grad_norm=grad_norm,
            skipped=not (finite and math.isfinite(grad_norm)),
            z_loss=z_loss,
            dynamics=observer.figures() if observer else None,
        )
        return PendingStep.done(result)

    @failing_together()
    def score(self, rows: PackedRows) -> TokenLogProbs:
        """Forward only on the live weights; leaves the engine as it was."""
        vocab_size = self._spec.vocab_size
        with evaluation(self._chunks, []):
            if self._stage < 3:
                return score_rows(self._chunks, rows, vocab_size=vocab_size)
            from pretrain.engine.deepspeed.gather import run_pieces, without_hooks

            with without_hooks(self._model):
                return score_rows(self._chunks, rows, vocab_size=vocab_size, run=run_pieces)

    @failing_together()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Greedy continuations from the live weights; leaves the engine as it was.

        At stage 3 every rank holds all weights of its tensor-parallel part meanwhile: a gather of every layer for
        every token would take hours.
        """
        with evaluation(self._chunks, []), contextlib.ExitStack() as stack:
            if self._stage == 3:
                from pretrain.engine.deepspeed.gather import gathered, without_hooks

                stack.enter_context(without_hooks(self._model))
                stack.enter_context(gathered(self._model.parameters()))
            return generate_ids(self._chunks, requests, vocab_size=self._spec.vocab_size)

    def fp8_loss_gap(self) -> None:
        """None: fp8 is refused here."""
        return

    def sharded_state(self) -> Any:
        """Weights and moments of this rank."""
        return self._state

    def describe(self) -> dict[str, Any]:
        """Layout and versions, as plain JSON values."""
        engine, adam = self._config.engine, type(self._deepspeed.basic_optimizer)
        return {
            "engine": "deepspeed",
            "deepspeed": version("deepspeed"),
            "megatron_core": version("megatron-core"),
            "torch": torch.__version__,
            "device": self._device.type,
            "world_size": dist.get_world_size(),
            "tensor": self._config.parallel.tensor,
            "data": self._replicas,
            "zero_stage": self._stage,
            "offload_optimizer": engine.offload_optimizer,
            "offload_parameters": engine.offload_parameters,
            "optimizer": f"{adam.__module__}.{adam.__qualname__}",
            "compute": self._config.precision.compute,
            "kernels": self._kernels.describe(),
        }

    def records(self) -> dict[str, str]:
        """The configuration that DeepSpeed was given."""
        return self._records

    def close(self) -> None:
        """Takes the process groups down."""
        self._deepspeed.destroy()
        groups.stop()

    def _forward_backward(self, part: Microbatch, *, step_tokens: int) -> torch.Tensor:
        """Sums of the microbatch's token losses, and z-losses where there are any: fp64 [1 or 2]."""
        losses = self._deepspeed(part.tokens_BS, part.position_ids_BS, part.mask, labels=part.labels_BS)
        total, sums = summed(losses, part.weights_BS)
        # DeepSpeed averages gradients over the replicas. A loss that is not finite makes the factor, and with it every
        # gradient, not a number: DeepSpeed then leaves the step out, without anybody waiting for the loss here.
        factor = total.detach() * 0.0 + self._replicas / step_tokens
        self._deepspeed.backward(total * factor, scale_wrt_gas=False)
        return torch.stack([one.double() for one in sums])

    def _update(self) -> float:
        """Lets DeepSpeed clip and step; returns the norm before clipping, infinite where it left the step out."""
        self._deepspeed.step()
        norm = float(self._deepspeed.get_global_grad_norm())
        return norm if norm >= 0.0 else math.inf  # it marks a norm that is not finite by -1

    @torch.no_grad()
    def _update_alone(self, finite: bool) -> float:
        """Stage 0, where DeepSpeed reports no norm and steps whatever the gradient is: clips here, or leaves it out."""
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = self._whole_norm(parameters)
        if not (finite and math.isfinite(norm)):
            self._deepspeed.zero_grad()
            return norm
        clip = self._config.optimizer.grad_clip
        scale = clip / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        if clip > 0.0 and scale < 1.0:
            torch._foreach_mul_([p.grad for p in parameters], scale)
        self._deepspeed.step()
        return norm

    def _whole_norm(self, parameters: Sequence[Any]) -> float:
        """L2 norm over the whole model: copies on further tensor-parallel ranks do not count."""
        first = parallel_state.get_tensor_model_parallel_rank() == 0
        mine = [p.grad for p in parameters if first or getattr(p, "tensor_model_parallel", False)]
        square = torch.zeros((), dtype=torch.float64, device=self._device)
        for grad in mine:
            square += torch.linalg.vector_norm(grad, dtype=torch.float64).square()
        dist.all_reduce(square, group=parallel_state.get_tensor_model_parallel_group())
        return math.sqrt(square.item())
