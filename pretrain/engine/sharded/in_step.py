"""A rank that fails while it scores stays in step with its peers: none waits for it, and all fail together after.

The failed rank goes on through the schedule without computing: it joins the collectives that are left of the
present forward pass, and all of later ones, with zeros, and sends zeros on. How many collectives of the present
one it has joined already is the process group's own count.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.engine.base import PackedRow
from pretrain.engine.sharded.staged import sequence_parts
from pretrain.errors import EngineError


class InStep:
    """Runs a replica's passes and keeps the first error.

    Attributes:
        error: what this rank failed with; None so far.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._group = parallel_state.get_tensor_model_parallel_group()

    def run(self, model: Any, row: PackedRow, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result of one forward pass; zeros of the same shape on a rank that has failed.

        Args:
            model: the chunk.
            row: what goes through it.
            work: the pass, and for the last chunk its head.
        """
        before = self._group._get_sequence_number_for_group()
        if self.error is None:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 (out of memory above all; raised on every rank by `agree`)
                self.error = error
                traceback.clear_frames(error.__traceback__)  # they hold this pass's activations
        joined = self._group._get_sequence_number_for_group() - before
        whole, part = _shapes(model, row)
        settings: dict[str, Any] = {"dtype": model.config.params_dtype, "device": next(model.parameters()).device}
        for kind in collectives(model)[joined:]:
            if kind == "reduce":
                dist.all_reduce(torch.zeros(whole, **settings), group=self._group)
            elif kind == "gather":
                dist.all_gather_into_tensor(
                    torch.empty(whole, **settings), torch.zeros(part, **settings), group=self._group
                )
            elif kind == "scatter":
                dist.reduce_scatter_tensor(
                    torch.empty(part, **settings), torch.zeros(whole, **settings), group=self._group
                )
            else:
                wanted = torch.zeros(len(row.wanted_W), whole[-1], **settings)
                dist.all_reduce(wanted, group=self._group)
        return torch.zeros(part, **settings)

    def agree(self) -> None:
        """Every rank calls it after its last pass.

        Raises:
            EngineError: on every rank the same, if one has failed.
        """
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        told = torch.tensor([0 if self.error is None else dist.get_rank() + 1], device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        failed = int(told.item()) - 1
        if failed < 0:
            return
        cause = [f"{type(self.error).__name__}: {self.error}"]
        dist.broadcast_object_list(cause, src=failed, device=device)
        raise EngineError(f"Scoring failed on rank {failed}: {cause[0]}") from self.error


def collectives(model: Any) -> list[str]:
    """Kinds of the tensor-parallel collectives of one pass through a chunk, in order; the tests count them."""
    config = model.config
    if config.tensor_model_parallel_size == 1:
        return []
    if config.sequence_parallel:
        embedding, layer, head = ["scatter"], ["gather", "scatter"] * 2, ["pick"]
    else:
        embedding, layer, head = ["reduce"], ["reduce"] * 2, []
    return [
        *(embedding if model.pre_process else []),
        *(layer * len(model.decoder.layers)),
        *(head if model.post_process else []),
    ]


def _shapes(model: Any, row: PackedRow) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Hidden states of a row, whole and this rank's part of them."""
    config, length = model.config, len(row.tokens_S)
    return (length, 1, config.hidden_size), (length // sequence_parts(config), 1, config.hidden_size)
