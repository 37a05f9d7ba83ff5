"""Where Megatron keeps fp32 weights and moments, as views that a checkpoint stages from and loads into.

Nothing here gathers or communicates. Three traps of megatron-core 0.16 are met here: torch's Adam has no state before
the first step and shares one `step` tensor after loading; the distributed optimizer holds flat ranges that ignore
parameter borders; a rank without parameters has a stub optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from pretrain.checkpoint.blocks import KINDS, Chunk
from pretrain.engine.sharded.blocks import Blocks, Range, chunks_of, fill_weights

if TYPE_CHECKING:
    from pretrain.checkpoint.reader import CheckpointReader
    from pretrain.checkpoint.source import TensorSource


class MegatronState:
    """`ShardedState` of plain and distributed Megatron optimizers.

    Args:
        chunks: bare GPTModel chunks of this rank.
        optimizer: what `get_megatron_optimizer` returned.
        blocks: `blocks_of(chunks)`, taken before wrapping.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], optimizer: Any, blocks: Blocks) -> None:
        self._parameters = [p for chunk in chunks for p in chunk.parameters()]
        self._blocks = blocks
        chained = isinstance(optimizer, ChainedOptimizer)
        self._optimizers = [o for o in (optimizer.chained_optimizers if chained else [optimizer]) if o.optimizer]
        self._sharded = any(isinstance(o, DistributedOptimizer) for o in self._optimizers)

    def ensure_moments(self, step: int | None = None) -> None:
        """Makes Adam's state as its first step would, each parameter with a `step` of its own.

        Args:
            step: optimizer steps done; null leaves existing state as it is.
        """
        for optimizer in self._optimizers:
            adam = optimizer.optimizer
            for group in adam.param_groups:
                if "step" in group and step is not None:  # fused Adams count per group; ours does on the device
                    group["step"] = group["step"].fill_(step) if isinstance(group["step"], torch.Tensor) else step
                for p in group["params"]:
                    if step is None and adam.state[p]:
                        continue
                    moments = {kind: torch.zeros_like(p.data) for kind in KINDS if kind != "param"}
                    counter = {} if "step" in group else {"step": torch.tensor(float(step or 0))}
                    adam.state[p] = counter | moments

    def chunks(self, *, gradients: bool = False) -> Iterable[Chunk]:
        """Flat ranges this rank writes; replicas share the work evenly where state is replicated.

        Args:
            gradients: each chunk has a further kind `grad`, the reduced gradient, which exists between Megatron's
                `prepare_grads` and the next step.
        """
        self.ensure_moments()
        return chunks_of(self._blocks, self._ranges(gradients=gradients), replicated=not self._sharded)

    @torch.no_grad()
    def load(self, reader: CheckpointReader) -> None:
        """Fills fp32 weights, moments and model weights from a checkpoint of any layout."""
        self.ensure_moments(step=reader.manifest.meta.optimizer_step)
        for parameter, start, views in self._ranges():
            for kind in KINDS:
                reader.fill(self._blocks[parameter], kind, views[kind], start)
        fill_weights(self._blocks, reader)

    @torch.no_grad()
    def start_from(self, source: TensorSource) -> None:
        """Fills weights alone; moments and optimizer step start at zero."""
        self.ensure_moments(step=0)
        for parameter, start, views in self._ranges():
            source.fill(self._blocks[parameter], "param", views["param"], start)
        fill_weights(self._blocks, source)

    def optimizer_step(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them; 0 on a rank without parameters."""
        for optimizer in self._optimizers:
            groups, states = optimizer.optimizer.param_groups, optimizer.optimizer.state.values()
            return int(next((one["step"] for one in (*groups, *states) if "step" in one), 0))
        return 0

    def _ranges(self, *, gradients: bool = False) -> Iterator[Range]:
        for optimizer in self._optimizers:
            adam = optimizer.optimizer
            if isinstance(optimizer, DistributedOptimizer):
                for parameter, (group, index) in optimizer.model_param_group_index_map.items():
                    main = adam.param_groups[group]["params"][index]
                    start = optimizer._get_model_param_range_map(parameter)["param"].start
                    yield parameter, start, _views(main, adam.state[main], gradients)
            else:
                parameter_of = {id(getattr(p, "main_param", p)): p for p in self._parameters}
                for param_group in adam.param_groups:
                    for main in param_group["params"]:
                        yield parameter_of[id(main)], 0, _views(main, adam.state[main], gradients)


def _views(main: torch.Tensor, state: dict[str, torch.Tensor], gradients: bool) -> dict[str, torch.Tensor]:
    moments = {kind: state[kind].view(-1) for kind in KINDS if kind != "param"}
    views = {"param": main.detach().view(-1), **moments}
    if gradients:
        assert main.grad is not None, "gradients exist only after prepare_grads"
        views["grad"] = main.grad.view(-1)
    return views
