"""The output layer in scoring: log-softmax at wanted positions, one tile of logits at a time.

A tile is some positions by some rows of the vocabulary. Its maximum and its sum of exponentials are folded into
running ones, as in flash attention, so that logits are written and read where they fit into a cache: on two CPU
cores this takes a quarter off the time of 256 positions by the whole vocabulary at once (220 against 290 ms for 640
positions, 32,000 pieces, width 256; the matrix products alone are 140). Vocabulary-parallel ranks merge once a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state

from pretrain.engine.base import PackedRow
from pretrain.engine.sharded.staged import move
from pretrain.model.layers.compiled import fast

_CPU_TILE = 512, 2048
"""Positions and vocabulary rows of a tile: 4 MB."""
_DEVICE_TILE = 2048, 32_768
"""Few large kernels: 134 MB of logits in bf16, and twice that where they are not folded by a compiled function."""


@dataclass
class Head:
    """This rank's share of log-softmax at every wanted position, merged over tensor parallelism at the end.

    Attributes:
        vocab_size: true vocabulary; padding rows are never computed.
    """

    vocab_size: int
    _maximum: list[torch.Tensor] = field(default_factory=list)
    _exp_sum: list[torch.Tensor] = field(default_factory=list)
    _winner: list[torch.Tensor] = field(default_factory=list)  # first vocabulary row of the tile with the maximum
    _pair_logit: list[torch.Tensor] = field(default_factory=list)
    _pair_leads: list[torch.Tensor] = field(default_factory=list)  # 1 where the target is its tile's first maximum
    _pair_tile: list[torch.Tensor] = field(default_factory=list)  # first vocabulary row of the target's tile
    _pair_position: list[torch.Tensor] = field(default_factory=list)
    _pair_id: list[torch.Tensor] = field(default_factory=list)
    _num_positions: int = 0
    _answers: torch.Tensor | None = None

    def add(self, model: Any, hidden_S1H: torch.Tensor, row: PackedRow) -> None:
        """Adds one row.

        Args:
            model: the chunk with the output layer.
            hidden_S1H: its hidden states; this rank's part of S with sequence parallelism.
            row: the row.
        """
        device = hidden_S1H.device
        weight = model.output_layer.weight
        if weight is None:
            weight = model.shared_embedding_or_output_weight()
        shard = weight.shape[0]
        first = parallel_state.get_tensor_model_parallel_rank() * shard
        weight_VH = weight[: max(0, min(shard, self.vocab_size - first))]
        num_positions, num_rows = _CPU_TILE if device.type == "cpu" else _DEVICE_TILE
        in_shard_P = row.pair_target_P % shard
        reads = list(_reads(row, first, (num_positions, num_rows), len(weight_VH)))
        wanted, position, tile, ids, *indices = move(
            [
                row.wanted_W,
                row.pair_wanted_P + self._num_positions,
                row.pair_target_P - in_shard_P % num_rows,
                row.pair_id_P,
                *(array for read in reads for array in read.arrays),
            ],
            device,
        )
        hidden_WH = pick(hidden_S1H[:, 0], wanted, model.config.sequence_parallel)
        pairs = _Pairs(len(ids), reads, indices, device)
        fold = fast(_fold, model.config.kernels.compile)
        for start in range(0, len(hidden_WH), num_positions):
            hidden_CH = hidden_WH[start : start + num_positions]
            so_far = _nothing(len(hidden_CH), device)
            for v in range(0, len(weight_VH), num_rows):
                logits = F.linear(hidden_CH, weight_VH[v : v + num_rows])
                pairs.read(logits, start, v)
                so_far = fold(logits, *so_far, first + v)
            for kept, found in zip((self._maximum, self._exp_sum, self._winner), so_far, strict=True):
                kept.append(found)
        self._pair_logit.append(pairs.logit_P)
        self._pair_leads.append(pairs.leads_P)
        self._pair_tile.append(tile)
        self._pair_position.append(position)
        self._pair_id.append(ids)
        self._num_positions += len(hidden_WH)

    def put_together(self, num_pairs: int, device: torch.device) -> None:
        """Joins the parts of all rows and makes room for the answers, which takes memory and meets no other rank."""
        of_rows = (self._maximum, self._exp_sum, self._winner, self._pair_logit, self._pair_leads)
        for parts in (*of_rows, self._pair_tile, self._pair_position, self._pair_id):
            parts[:] = [torch.cat(parts)] if parts else []
        self._answers = torch.zeros(2, num_pairs, dtype=torch.float64, device=device)

    def merge(self, num_pairs: int, device: torch.device) -> torch.Tensor:
        """[2, num_pairs] float64: log-probability and greedy flag, zeros where another rank speaks.

        Greedy is the first of equal maxima, as `argmax` has it. Every rank of a tensor-parallel group calls it.
        """
        if self._answers is None:
            self.put_together(num_pairs, device)
        answers = self._answers
        assert answers is not None, "just made"
        if not self._num_positions:
            return answers
        (local_max,), (total,), (winner,) = self._maximum, self._exp_sum, self._winner
        group = parallel_state.get_tensor_model_parallel_group()
        top = local_max.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        total = _sum_in_order(total * (local_max - top).exp(), group)
        of_pairs = torch.stack([self._pair_logit[0], self._pair_leads[0]])
        dist.all_reduce(of_pairs, group=group)  # all but one rank add zero: no rounding
        winner = torch.where(local_max == top, winner, torch.iinfo(torch.int64).max)
        dist.all_reduce(winner, dist.ReduceOp.MIN, group=group)
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            (at,), (tile,), (ids,) = self._pair_position, self._pair_tile, self._pair_id
            answers[0, ids] = of_pairs[0].double() - top[at].double() - total[at].double().log()
            answers[1, ids] = ((of_pairs[1] > 0) & (winner[at] == tile)).double()
        return answers


def _nothing(num_positions: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maximum, sum of exponentials and winner over no vocabulary row."""
    top = torch.full((num_positions,), -torch.inf, device=device)
    return top, torch.zeros_like(top), torch.zeros(num_positions, dtype=torch.int64, device=device)


def _fold(
    logits_CV: torch.Tensor, top_C: torch.Tensor, total_C: torch.Tensor, winner_C: torch.Tensor, first_row: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maximum, sum of exponentials and winner with one more tile, whose logits are used up."""
    logits_CV = logits_CV.float()
    tile_top = logits_CV.amax(-1)
    winner_C = torch.where(tile_top > top_C, first_row, winner_C)
    new_top = torch.maximum(top_C, tile_top)
    total_C = total_C * (top_C - new_top).exp() + logits_CV.sub_(new_top[:, None]).exp_().sum(-1)
    return new_top, total_C, winner_C


@dataclass(frozen=True, slots=True)
class _Read:
    """What is read out of one tile.

    Attributes:
        tile: its first position and its first row of this rank's vocabulary.
        arrays: the pairs that lie in it; position and target of each in the tile; the positions that any of them has,
            none if that is all of the tile's; and which of those each has.
    """

    tile: tuple[int, int]
    arrays: tuple[np.ndarray, ...]


def _reads(row: PackedRow, first: int, size: tuple[int, int], num_rows: int) -> Iterator[_Read]:
    """The tiles that pairs lie in, known on the host; `first` is this rank's first row of the vocabulary."""
    for start in range(0, len(row.wanted_W), size[0]):
        num_positions = min(size[0], len(row.wanted_W) - start)
        position = row.pair_wanted_P - start
        for v in range(0, num_rows, size[1]):
            target = row.pair_target_P - first - v
            inside = (
                (position >= 0) & (position < num_positions) & (target >= 0) & (target < min(size[1], num_rows - v))
            )
            pairs = np.flatnonzero(inside)
            if not len(pairs):
                continue
            places, place = np.unique(position[pairs], return_inverse=True)
            if len(places) == num_positions:
                places = places[:0]
            yield _Read((start, v), (pairs, position[pairs], target[pairs], places, place))


class _Pairs:
    """The (position, target) pairs of a row, read out of the tiles they lie in.

    Args:
        num_pairs: of the row.
        reads: where they lie.
        indices: the arrays of all reads on the device.
        device: where the model lives.
    """

    def __init__(
        self, num_pairs: int, reads: Sequence[_Read], indices: Sequence[torch.Tensor], device: torch.device
    ) -> None:
        self.logit_P = torch.zeros(num_pairs, device=device)
        self.leads_P = torch.zeros(num_pairs, device=device)
        self._indices = {read.tile: indices[5 * i : 5 * i + 5] for i, read in enumerate(reads)}

    def read(self, logits_CV: torch.Tensor, start: int, row: int) -> None:
        """Reads a tile whose first position and vocabulary row are given."""
        if (start, row) not in self._indices:
            return
        pairs, position, target, places, place = self._indices[start, row]
        self.logit_P[pairs] = logits_CV[position, target].float()
        leaders = (logits_CV[places] if len(places) else logits_CV).argmax(-1)
        self.leads_P[pairs] = (leaders[place] == target).float()


def _sum_in_order(part: torch.Tensor, group: Any) -> torch.Tensor:
    """Sum over the group in the order of its ranks.

    An all-reduce adds each part of a buffer in another order, so a number would depend on which others are scored in
    the same call; a suite scored slice by slice must give the bits of one scored at once.
    """
    if dist.get_world_size(group) <= 2:
        dist.all_reduce(part, group=group)  # a + b = b + a
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    total = parts[0]
    for other in parts[1:]:
        total = total + other
    return total


def pick(hidden_SH: torch.Tensor, wanted_W: torch.Tensor, sequence_parallel: bool) -> torch.Tensor:
    """[W, H]. With sequence parallelism each rank fills in the positions it has, then one even all-reduce."""
    if not sequence_parallel:
        return hidden_SH[wanted_W]
    length = hidden_SH.shape[0]
    first = parallel_state.get_tensor_model_parallel_rank() * length
    local = wanted_W - first
    mine = (local >= 0) & (local < length)
    # Not `hidden_SH[local[mine]]`: how many those are the host would have to wait for.
    picked = torch.where(mine[:, None], hidden_SH[local.clamp(0, length - 1)], 0.0)
    dist.all_reduce(picked, group=parallel_state.get_tensor_model_parallel_group())
    return picked
