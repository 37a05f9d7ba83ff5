"""The output layer in scoring: log-softmax at wanted positions, one tile of logits at a time.

A tile is some positions by some rows of the vocabulary. Its maximum and its sum of exponentials are folded into
running ones, as in flash attention, so that logits are written and read where they fit into a cache: on two CPU
cores this takes a quarter off the time of 256 positions by the whole vocabulary at once (220 against 290 ms for 640
positions, 32,000 pieces, width 256; the matrix products alone are 140). Vocabulary-parallel ranks merge once a call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state

from pretrain.engine.base import PackedRow

_CPU_TILE = 512, 2048
"""Positions and vocabulary rows of a tile: 4 MB."""
_DEVICE_TILE = 2048, 32_768
"""268 MB: few large kernels."""


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

    def add(self, model: Any, hidden_S1H: torch.Tensor, row: PackedRow) -> None:
        """Adds one row.

        Args:
            model: the chunk with the output layer.
            hidden_S1H: its hidden states; this rank's part of S with sequence parallelism.
            row: the row.
        """
        device = hidden_S1H.device
        wanted = torch.as_tensor(row.wanted_W, device=device)
        hidden_WH = pick(hidden_S1H[:, 0], wanted, model.config.sequence_parallel)
        weight = model.output_layer.weight
        if weight is None:
            weight = model.shared_embedding_or_output_weight()
        shard = weight.shape[0]
        first = parallel_state.get_tensor_model_parallel_rank() * shard
        weight_VH = weight[: max(0, min(shard, self.vocab_size - first))]
        num_positions, num_rows = _CPU_TILE if device.type == "cpu" else _DEVICE_TILE
        pairs = _Pairs(row.pair_wanted_P, row.pair_target_P - first, device)
        for start in range(0, len(hidden_WH), num_positions):
            self._reduce(hidden_WH[start : start + num_positions], start, weight_VH, first, num_rows, pairs)
        self._pair_logit.append(pairs.logit_P)
        self._pair_leads.append(pairs.leads_P)
        in_shard_P = row.pair_target_P % shard
        self._pair_tile.append(torch.as_tensor(row.pair_target_P - in_shard_P % num_rows, device=device))
        self._pair_position.append(torch.as_tensor(row.pair_wanted_P, device=device) + self._num_positions)
        self._pair_id.append(torch.as_tensor(row.pair_id_P, device=device))
        self._num_positions += len(hidden_WH)

    def _reduce(
        self, hidden_CH: torch.Tensor, start: int, weight_VH: torch.Tensor, first: int, num_rows: int, pairs: _Pairs
    ) -> None:
        """Some positions against this rank's whole part of the vocabulary; none where it is padding only."""
        device = hidden_CH.device
        top = torch.full((len(hidden_CH),), -torch.inf, device=device)
        total = torch.zeros(len(hidden_CH), device=device)
        winner = torch.zeros(len(hidden_CH), dtype=torch.int64, device=device)
        for row in range(0, len(weight_VH), num_rows):
            logits = F.linear(hidden_CH, weight_VH[row : row + num_rows]).float()
            pairs.read(logits, start, row)
            tile_top = logits.amax(-1)
            winner = torch.where(tile_top > top, first + row, winner)
            new_top = torch.maximum(top, tile_top)
            total = total * (top - new_top).exp() + logits.sub_(new_top[:, None]).exp_().sum(-1)
            top = new_top
        self._maximum.append(top)
        self._exp_sum.append(total)
        self._winner.append(winner)

    def merge(self, num_pairs: int, device: torch.device) -> torch.Tensor:
        """[2, num_pairs] float64: log-probability and greedy flag, zeros where another rank speaks.

        Greedy is the first of equal maxima, as `argmax` has it. Every rank of a tensor-parallel group calls it.
        """
        answers = torch.zeros(2, num_pairs, dtype=torch.float64, device=device)
        if not self._num_positions:
            return answers
        local_max, total, winner = (torch.cat(t) for t in (self._maximum, self._exp_sum, self._winner))
        group = parallel_state.get_tensor_model_parallel_group()
        top = local_max.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        total = _sum_in_order(total * (local_max - top).exp(), group)
        of_pairs = torch.stack([torch.cat(self._pair_logit), torch.cat(self._pair_leads)])
        dist.all_reduce(of_pairs, group=group)  # all but one rank add zero: no rounding
        winner = torch.where(local_max == top, winner, torch.iinfo(torch.int64).max)
        dist.all_reduce(winner, dist.ReduceOp.MIN, group=group)
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            at, tile, ids = (torch.cat(t) for t in (self._pair_position, self._pair_tile, self._pair_id))
            answers[0, ids] = of_pairs[0].double() - top[at].double() - total[at].double().log()
            answers[1, ids] = ((of_pairs[1] > 0) & (winner[at] == tile)).double()
        return answers


class _Pairs:
    """The (position, target) pairs of a row, read out of the tiles they lie in. Which they are is known on the host."""

    def __init__(self, wanted_P: np.ndarray, target_P: np.ndarray, device: torch.device) -> None:
        self._wanted_P, self._target_P = wanted_P, target_P
        self.logit_P = torch.zeros(len(wanted_P), device=device)
        self.leads_P = torch.zeros(len(wanted_P), device=device)

    def read(self, logits_CV: torch.Tensor, start: int, row: int) -> None:
        """Reads a tile whose first position and vocabulary row are given."""
        position, target = self._wanted_P - start, self._target_P - row
        inside = (position >= 0) & (position < logits_CV.shape[0]) & (target >= 0) & (target < logits_CV.shape[1])
        mine = np.flatnonzero(inside)
        if not len(mine):
            return
        places, place = np.unique(position[mine], return_inverse=True)
        device = logits_CV.device
        at, mine_, target_, places_, place_ = (
            torch.as_tensor(array, device=device) for array in (position[mine], mine, target[mine], places, place)
        )
        self.logit_P[mine_] = logits_CV[at, target_]
        self.leads_P[mine_] = (logits_CV[places_].argmax(-1)[place_] == target_).float()


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
    mine = (wanted_W >= first) & (wanted_W < first + length)
    picked = hidden_SH.new_zeros(len(wanted_W), hidden_SH.shape[1])
    picked[mine] = hidden_SH[wanted_W[mine] - first]
    dist.all_reduce(picked, group=parallel_state.get_tensor_model_parallel_group())
    return picked
