"""Megatron-core as an `Engine`: DDP, schedules and optimizer around the one model."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from pretrain.config.run import RunConfig
from pretrain.engine.agree import failing_together
from pretrain.engine.base import Batch, GenerationRequest, PackedRows, PendingStep, StepResult, TokenLogProbs
from pretrain.engine.device import read_later
from pretrain.engine.initialize import initialize
from pretrain.engine.kernels import choose
from pretrain.engine.megatron.alone import Alone
from pretrain.engine.megatron.shards import MegatronState
from pretrain.engine.megatron.update import FusedUpdate, parts_of, squared_norm
from pretrain.engine.sharded import groups
from pretrain.engine.sharded.batches import Microbatch, microbatches
from pretrain.engine.sharded.blocks import blocks_of
from pretrain.engine.sharded.dynamics import Observer
from pretrain.engine.sharded.generate import generate_ids
from pretrain.engine.sharded.score import evaluation, score_rows
from pretrain.engine.sharded.token_losses import summed
from pretrain.model.gpt import build_chunks, recompute_options, transformer_config
from pretrain.model.layers import fp8
from pretrain.model.layers.attention import zigzag_positions
from pretrain.model.spec import ModelSpec


class MegatronEngine:
    """The live model of a run under Megatron-core. Every rank builds one.

    Args:
        config: the resolved, checked configuration.
        spec: the model's derived sizes.
        device: where this rank computes.
    """

    def __init__(self, config: RunConfig, spec: ModelSpec, device: torch.device) -> None:
        self._config, self._spec, self._device = config, spec, device
        groups.start(config)
        kernels = choose(config, device)
        options = _pipeline_options(config) | recompute_options(config, kernels)
        self._megatron = transformer_config(config, spec, kernels, **options)
        self._chunks = build_chunks(config, spec, self._megatron)
        blocks = blocks_of(self._chunks)
        initialize(blocks, config.model, seed=config.run.seed)
        # One replica has nobody to share gradients and moments with: no shards, no collectives that only copy.
        self._replicated = groups.replicas()[1] > 1
        sums_itself = kernels.weight_gradients == "plain" and not self._megatron.bf16
        self._alone = dist.get_world_size() == 1 and sums_itself
        self._step_tokens = 0
        self._last_batch: Batch | None = None
        length, size = config.train.sequence_length, config.parallel.context
        self._positions = [zigzag_positions(length // size, rank=one, size=size).to(device) for one in range(size)]
        self._wrappers = self._wrap()
        self._optimizer = self._build_optimizer()
        self._fused_update: FusedUpdate | None = None
        if kernels.optimizer == "fused":
            self._fused_update = FusedUpdate(self._optimizer, config.optimizer, compiled=kernels.compile, device=device)
        self._state = MegatronState(self._chunks, self._optimizer, blocks)
        self._connect()
        self._forward_backward = get_forward_backward_func()

    def train_step(self, batch: Batch, learning_rate: float, *, observe: bool = False) -> PendingStep:
        """One update over all microbatches; not applied when loss or gradient is not finite.

        With the plain optimizer the host decides on that, and waits for loss and norm.
        """
        observer = Observer(self._chunks, self._spec) if observe else None
        for wrapper in self._wrappers:
            wrapper.zero_grad_buffer()
        self._optimizer.zero_grad()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_mult"]
            # Megatron leaves this to its own scheduler: without it norms are decayed in spite of wd_mult.
            group["weight_decay"] = self._config.optimizer.weight_decay * group["wd_mult"]
        self._last_batch = batch
        with observer.activations() if observer else contextlib.nullcontext():
            losses = self._pass(batch)
        tokens = self._step_tokens
        unusable = self._optimizer.prepare_grads()
        if observer:
            observer.before_update(self._state.chunks(gradients=True))
        if self._fused_update is not None:
            norm, _ = self._fused_update(losses.sum())
            read = read_later(torch.cat([norm[None], losses]))
        else:
            on_host = losses.tolist()
            figures = [math.inf if unusable else self._update(sum(on_host)), *on_host]

            def read() -> list[float]:
                return figures

        def result() -> StepResult:
            grad_norm, loss, *rest = read()
            return StepResult(
                loss=loss,
                tokens=tokens,
                grad_norm=grad_norm,
                skipped=not (math.isfinite(sum(rest, loss)) and math.isfinite(grad_norm)),
                z_loss=rest[0] if rest else None,
                dynamics=observer.figures() if observer else None,
            )

        late = self._fused_update is not None and self._device.type == "cuda"
        return PendingStep(tokens=tokens, result=result, late=late)

    def _pass(self, batch: Batch, *, forward_only: bool = False) -> torch.Tensor:
        """All microbatches of a batch; fp64 [1 or 2], mean loss per token and mean z-loss, on every rank."""
        microbatches, micro_batch_size, _ = batch.tokens_MBT.shape
        tokens = self._step_tokens = batch.num_samples * self._config.train.sequence_length
        iterators = [self._microbatches(batch) for _ in self._wrappers]
        outputs = self._forward_backward(
            forward_step_func=self._forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._wrappers if len(self._wrappers) > 1 else self._wrappers[0],
            num_microbatches=microbatches,
            seq_length=self._config.train.sequence_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
        )
        return self._reduce_losses(outputs) / tokens

    @failing_together()
    def score(self, rows: PackedRows) -> TokenLogProbs:
        """Forward only on the live weights; leaves the engine as it was."""
        with evaluation(self._chunks, self._wrappers):
            return score_rows(self._chunks, rows, vocab_size=self._spec.vocab_size)

    @failing_together()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Greedy continuations from the live weights; leaves the engine as it was."""
        with evaluation(self._chunks, self._wrappers):
            return generate_ids(self._chunks, requests, vocab_size=self._spec.vocab_size)

    def fp8_loss_gap(self) -> float | None:
        """Two passes without backward over the last step's batch; nothing is changed."""
        batch = self._last_batch
        if not self._megatron.kernels.fp8 or batch is None:
            return None
        in_fp8 = self._pass(batch, forward_only=True)
        with contextlib.ExitStack() as stack:
            for chunk in self._chunks:
                stack.enter_context(fp8.without_fp8(chunk))
            in_bf16 = self._pass(batch, forward_only=True)
        return float((in_fp8 - in_bf16)[0])

    def sharded_state(self) -> MegatronState:
        """Weights and moments of this rank."""
        return self._state

    def describe(self) -> dict[str, Any]:
        """Layout and versions, as plain JSON values."""
        parallel = self._config.parallel
        return {
            "engine": "megatron",
            "megatron_core": version("megatron-core"),
            "torch": torch.__version__,
            "device": self._device.type,
            "world_size": dist.get_world_size(),
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "virtual_pipeline": parallel.virtual_pipeline,
            "context": parallel.context,
            "sequence": parallel.sequence,
            "data": parallel_state.get_data_parallel_world_size(),
            "distributed_optimizer": self._config.engine.distributed_optimizer and self._replicated,
            "compute": self._config.precision.compute,
            "kernels": self._megatron.kernels.describe(),
        }

    def records(self) -> dict[str, str]:
        """Nothing: the run's own configuration says all."""
        return {}

    def close(self) -> None:
        """Takes the process groups down."""
        groups.stop()

    def _wrap(self) -> list[Any]:
        engine, bf16, replicated = self._config.engine, self._megatron.bf16, self._replicated
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=engine.overlap_grad_reduce and replicated,
            overlap_param_gather=engine.overlap_param_gather and replicated,
            use_distributed_optimizer=engine.distributed_optimizer and replicated,
            bucket_size=engine.bucket_size,
        )
        if self._alone:
            return [Alone(self._megatron, chunk) for chunk in self._chunks]
        modules = [Float16Module(self._megatron, chunk) if bf16 else chunk for chunk in self._chunks]
        return [
            DistributedDataParallel(config=self._megatron, ddp_config=ddp, module=module, disable_bucketing=index > 0)
            for index, module in enumerate(modules)
        ]

    def _build_optimizer(self) -> Any:
        settings, engine, replicated = self._config.optimizer, self._config.engine, self._replicated
        options = OptimizerConfig(
            optimizer="adam",
            lr=self._config.schedule.learning_rate,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.grad_clip,
            bf16=self._megatron.bf16,
            params_dtype=self._megatron.params_dtype,
            use_distributed_optimizer=engine.distributed_optimizer and replicated,
            overlap_param_gather=engine.overlap_param_gather and replicated,
        )
        # No override puts every parameter into one decayed group; Megatron's default exempts norms and biases.
        overrides: dict[Any, Any] | None = {} if settings.decay == "all" else None
        return get_megatron_optimizer(options, self._wrappers, overrides, use_gloo_process_groups=False)

    def _connect(self) -> None:
        """Gives Megatron's schedules the functions they call on the wrappers."""
        engine, megatron = self._config.engine, self._megatron
        megatron.finalize_model_grads_func = self._finalize_gradients
        megatron.grad_scale_func = self._optimizer.scale_loss
        single = len(self._wrappers) == 1
        if engine.overlap_grad_reduce and self._replicated:
            no_sync = [wrapper.no_sync for wrapper in self._wrappers]
            megatron.no_sync_func = no_sync[0] if single else no_sync
            if not single:
                megatron.grad_sync_func = [wrapper.start_grad_sync for wrapper in self._wrappers]
        if engine.overlap_param_gather and self._replicated and not single:
            megatron.param_sync_func = [wrapper.start_param_sync for wrapper in self._wrappers]

    def _microbatches(self, batch: Batch) -> Iterator[Microbatch]:
        rank, dtype = parallel_state.get_context_parallel_rank(), self._megatron.params_dtype
        return microbatches(batch, self._positions, context_rank=rank, dtype=dtype)

    def _forward_step(self, iterator: Iterator[Microbatch], model: Any) -> tuple[torch.Tensor, Any]:
        part = next(iterator)
        losses = model(part.tokens_BS, part.position_ids_BS, part.mask, labels=part.labels_BS)
        return losses, functools.partial(_scaled_sum, weights_BS=part.weights_BS, scale=1.0 / self._step_tokens)

    def _finalize_gradients(self, wrappers: list[Any], _: torch.Tensor | None, **options: Any) -> None:
        """Reduces gradients; the loss was divided by the step's tokens, which every rank knows.

        Megatron would count them with two collectives, wait for the answer, and go over all gradients once more.
        """
        if not self._alone:
            finalize_model_grads(wrappers, None, **options)

    def _reduce_losses(self, outputs: list[list[torch.Tensor]]) -> torch.Tensor:
        """fp64 [1 or 2]: sum of the global batch's token losses, and of its z-losses; on every rank."""
        totals = torch.zeros(2 if self._config.optimizer.z_loss else 1, dtype=torch.float64, device=self._device)
        if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            for index, sums in enumerate(zip(*outputs, strict=True)):
                totals[index] = torch.stack(sums).double().sum()
            if self._replicated:
                dist.all_reduce(totals, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        if self._config.parallel.pipeline > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(totals, source, group=parallel_state.get_pipeline_model_parallel_group())
        return totals

    @torch.no_grad()
    def _update(self, loss: float) -> float:
        """Clips and steps unless loss or gradient is not finite; returns the norm before clipping."""
        squares = (squared_norm(part, self._device) for part in parts_of(self._optimizer))
        grad_norm = math.sqrt(sum(square.item() for square in squares))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return grad_norm
        clip = self._config.optimizer.grad_clip
        scale = clip / (grad_norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        if clip > 0.0 and scale < 1.0:
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], scale)
        self._optimizer.step_with_ready_grads()
        return grad_norm


def _pipeline_options(config: RunConfig) -> dict[str, Any]:
    """How stages exchange activations.

    Interleaved stages with batched exchanges give wrong losses at two stages, without a word: they overlap theirs.
    Outputs are not deallocated: with overlapped exchanges on gloo that gave NaN.
    """
    if config.parallel.pipeline == 1:
        return {}
    interleaved = config.parallel.virtual_pipeline > 1
    return {
        "batch_p2p_comm": not interleaved,
        "overlap_p2p_comm": interleaved,
        "deallocate_pipeline_outputs": False,
    }


def _scaled_sum(
    losses: torch.Tensor, *, weights_BS: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Megatron's per-token form, `scale` being 1 / tokens of the step: (to differentiate, tokens, to report)."""
    total, sums = summed(losses, weights_BS)
    count = torch.full((), losses.shape[-2:].numel(), dtype=torch.int, device=losses.device)
    return total * scale, count, sums
