"""Where DeepSpeed keeps fp32 weights and moments, as views that a checkpoint stages from and loads into.

Nothing here gathers or communicates. Stage 0 holds everything on every replica; stages 1 and 2 (and the optimizer
that DeepSpeed uses for stage 1 in bf16) hold one flat range per parameter group; stage 3 holds an equal part of every
parameter. None of them has moments before the first step: they are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from deepspeed.utils import safe_get_local_grad

from pretrain.checkpoint.blocks import KINDS, Chunk
from pretrain.engine.deepspeed.adam import adam_state
from pretrain.engine.sharded.blocks import Blocks, Range, chunks_of

if TYPE_CHECKING:
    from pretrain.checkpoint.reader import CheckpointReader
    from pretrain.checkpoint.source import TensorSource


class DeepSpeedState:
    """`ShardedState` of every ZeRO stage, offloaded or not.

    Args:
        engine: what `deepspeed.initialize` returned.
        blocks: where each parameter lies in the whole model, taken before DeepSpeed touched it.
    """

    def __init__(self, engine: Any, blocks: Blocks) -> None:
        self._engine, self._blocks = engine, blocks
        self._parameters = list(blocks)
        self._stage = int(engine.zero_optimization_stage())
        self._adam = engine.basic_optimizer

    def chunks(self, *, gradients: bool = False) -> Iterable[Chunk]:
        """Flat ranges this rank writes; replicas share the work evenly where state is replicated (stage 0).

        Args:
            gradients: each chunk has a further kind `grad`, the reduced gradient, which exists between the last
                backward of a step and its update.
        """
        self.ensure_moments()
        return chunks_of(self._blocks, self._ranges(gradients=gradients), replicated=self._stage == 0)

    def optimizer_step(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them; 0 before the first."""
        return max((int(state["step"]) for state in self._adam.state.values()), default=0)

    @torch.no_grad()
    def load(self, reader: CheckpointReader) -> None:
        """Fills fp32 weights, moments and model weights from a checkpoint of any layout and engine."""
        self.ensure_moments(step=reader.manifest.meta.optimizer_step)
        for parameter, start, views in self._ranges():
            for kind in KINDS:
                reader.fill(self._blocks[parameter], kind, views[kind], start)
        self._fill_weights(reader)

    @torch.no_grad()
    def start_from(self, source: TensorSource) -> None:
        """Fills weights alone; moments and optimizer step start at zero."""
        self.ensure_moments(step=0)
        for parameter, start, views in self._ranges():
            source.fill(self._blocks[parameter], "param", views["param"], start)
        self._fill_weights(source)

    def ensure_moments(self, step: int | None = None) -> None:
        """Makes Adam's state as its first step would.

        Args:
            step: optimizer steps done; None leaves existing state as it is.
        """
        for flat in self._masters():
            if step is not None or not self._adam.state[flat]:
                self._adam.state[flat] = adam_state(self._adam, flat, step=step or 0)

    def _masters(self) -> list[torch.Tensor]:
        """What the optimizer updates: parameters at stage 0, flat ranges otherwise."""
        if self._stage == 3:
            # The optimizer's own groups are empty but for a moment inside each step.
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._adam.param_groups for p in group["params"]]

    def _ranges(self, *, gradients: bool = False) -> Iterator[Range]:
        for parameter in self._parameters:
            found = (self._whole, self._fragment, self._fragment, self._partition)[self._stage](parameter)
            if found is None:
                continue  # no part of it lives here
            start, views = found
            if gradients:
                views["grad"] = self._gradient(parameter, start, len(views["param"]))
            yield parameter, start, views

    def _whole(self, parameter: Any) -> tuple[int, dict[str, torch.Tensor]] | None:
        return 0, self._views(parameter, 0, parameter.numel())

    def _fragment(self, parameter: Any) -> tuple[int, dict[str, torch.Tensor]] | None:
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat = self._adam.param_groups[mapping.param_group_index]["params"][0]
        at = mapping.hp_fragment_address
        return mapping.lp_fragment_address.start, self._views(flat, at.start, at.numel)

    def _partition(self, parameter: Any) -> tuple[int, dict[str, torch.Tensor]] | None:
        start, real = _partition_of(parameter)
        if not real:
            return None
        zero = self._engine.optimizer
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        return start, self._views(zero.fp32_partitioned_groups_flat[group], offset, real)

    def _views(self, master: torch.Tensor, offset: int, numel: int) -> dict[str, torch.Tensor]:
        state = self._adam.state[master]
        whole = {"param": master.detach(), **{kind: state[kind] for kind in KINDS if kind != "param"}}
        return {kind: tensor.view(-1)[offset : offset + numel] for kind, tensor in whole.items()}

    def _gradient(self, parameter: Any, start: int, numel: int) -> torch.Tensor:
        if self._stage == 0:
            return parameter.grad.view(-1)
        if self._stage == 3:
            return safe_get_local_grad(parameter)[:numel]
        fragment = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
        # In bf16, stage 1 keeps the whole summed gradient on every rank.
        return fragment[start : start + numel] if fragment.numel() == parameter.numel() else fragment

    def _fill_weights(self, source: TensorSource) -> None:
        """Fills the weights the model computes with, straight from the files: no gather is needed."""
        for parameter, blocks in self._blocks.items():
            if self._stage == 3:
                start, real = _partition_of(parameter)
                if real:
                    source.fill(blocks, "param", parameter.ds_tensor.data[:real], start)  # type: ignore[attr-defined]
            if parameter.data.numel() == sum(block.numel for block in blocks):  # at stage 3 only what is persistent
                source.fill(blocks, "param", parameter.data.view(-1), 0)


def _partition_of(parameter: Any) -> tuple[int, int]:
    """First flat element and number of real elements of this rank's part; the last parts are padded."""
    size = parameter.ds_tensor.ds_numel
    start = size * parameter.ds_zero_partition_rank
    return start, min(size, max(0, parameter.ds_numel - start))
