"""A rank that fails while it scores stays in step with its peers: none waits for it, and all fail together after.

The failed rank goes on through the schedule without computing: it joins the collectives that are left of the
present forward pass, and all of later ones, with zeros, and sends zeros on. How many collectives of the present
one it has joined already is the process group's own count.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.engine.agree import agree
from pretrain.engine.base import PackedRow
from pretrain.engine.sharded.staged import sequence_parts

T = TypeVar("T")


class InStep:
    """Runs a replica's passes and keeps the first error.

    Attributes:
        error: what this rank failed with; None so far.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._group = parallel_state.get_tensor_model_parallel_group()

    def attempt(self, work: Callable[[], T]) -> T | None:
        """The result of work that meets no other rank; None on a rank that has failed, now or before."""
        if self.error is None:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 (out of memory above all; raised on every rank by `agree`)
                self.error = self.error or error
                traceback.clear_frames(error.__traceback__)  # they hold this pass's activations
        return None

    def run(self, model: Any, row: PackedRow, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result of one forward pass; zeros of the same shape on a rank that has failed.

        Args:
            model: the chunk.
            row: what goes through it.
            work: the pass, and for the last chunk its head.
        """
        before = self._group._get_sequence_number_for_group()
        result = self.attempt(work)
        if result is not None:
            return result
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

    def agree(self, *, number: int = 0) -> bool:
        """Every rank calls it before its first pass and after its last one; see `pretrain.engine.agree.agree`."""
        return agree(self.error, number=number)


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
