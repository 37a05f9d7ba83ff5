"""Greedy generation on the live sharded model, with a cache of keys and values, in any layout.

A prompt goes through the model as one row and fills a slot of the cache; then every pass takes one token of each
running sequence. A sequence that ends gives its slot to the next prompt. Each pass goes through all stages of a
pipeline before the next begins: the next token must be known. Data- and context-parallel ranks are replicas that
share the prompts out and meet at the end only.

Not here: sampling, and sharing of prompts' common beginnings (`probes.pack` does that for scoring).
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state

from pretrain.engine.base import GenerationRequest, PackedRow
from pretrain.engine.sharded import groups
from pretrain.engine.sharded.head import pick
from pretrain.engine.sharded.in_step import InStep
from pretrain.engine.sharded.score import forward_row, split_by_tokens
from pretrain.engine.sharded.staged import move, sequence_parts, stage
from pretrain.errors import EngineError
from pretrain.model.layers.cache import CachedAttention, Decode, KeyValueCache, Prefill

_CACHE_TOKENS = 16_384
"""Tokens that the sequences running at once may hold together: 8.6 GB for LLaMA-7B in bf16 on one rank."""


def generate_ids(
    chunks: Sequence[Any],
    requests: Sequence[GenerationRequest],
    *,
    vocab_size: int,
    cache_tokens: int = _CACHE_TOKENS,
) -> list[list[int]]:
    """The likeliest token after each prompt, again and again. Every rank calls it with the same requests.

    Args:
        chunks: this rank's bare model chunks, in evaluation mode (see `score.evaluation`).
        requests: prompts and where to stop.
        vocab_size: true vocabulary, without padding rows.
        cache_tokens: tokens of the cache, which decides how many sequences run at once.

    Returns:
        The new ids of each request, the same on every rank; the last one may be one of its stop ids.

    Raises:
        EngineError: ranks were given different requests, one has no prompt or asks for nothing, or a rank failed on
            the way (out of memory); the same on every rank, all of which can go on.
    """
    in_step = InStep()
    share = in_step.attempt(lambda: _share(chunks, requests, vocab_size, in_step))
    if not in_step.agree(number=share.digest if share is not None else 0):
        raise EngineError("Ranks were given different prompts to continue; they must be the same on every rank.")
    assert share is not None, "a rank without a share has failed"
    if share.model is None:
        return []
    # What is not a pass, such as a rule that ends an answer, fails on all ranks of its replica; the others wait here.
    ids = in_step.attempt(lambda: _answers(share, requests, cache_tokens))
    in_step.agree()
    assert ids is not None, "a rank without answers has failed"
    dist.all_reduce(ids)  # one rank speaks for each request; 0 is nothing
    return [(row[row > 0] - 1).tolist() for row in ids.cpu().numpy()]


@dataclass(frozen=True, slots=True)
class _Share:
    """What one replica continues.

    Attributes:
        digest: of all requests, the same on every rank.
        mine: indices of this replica's.
        model: what continues them; None where nothing is asked.
    """

    digest: int
    mine: list[int]
    model: _LockStep | None


def _share(chunks: Sequence[Any], requests: Sequence[GenerationRequest], vocab_size: int, in_step: InStep) -> _Share:
    """This rank's own work before the first pass."""
    digest = _digest(requests)
    if not requests:
        return _Share(digest, [], None)
    needed = [len(request.prompt) + request.max_new_tokens for request in requests]
    rank, size = groups.replicas()
    return _Share(digest, split_by_tokens(needed, size)[rank], _LockStep(chunks, vocab_size, in_step, max(needed)))


def _answers(share: _Share, requests: Sequence[GenerationRequest], cache_tokens: int) -> torch.Tensor:
    """int64 [requests, most new tokens]: id + 1 on the one rank that speaks for a request, 0 elsewhere."""
    assert share.model is not None, "something is asked"
    found = _continue_all(share.model, requests, share.mine, cache_tokens) if share.mine else {}
    ids = torch.zeros(len(requests), max(request.max_new_tokens for request in requests), dtype=torch.int64)
    if parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_pipeline_model_parallel_rank() == 0:
        for index, sequence in found.items():
            ids[index, : len(sequence)] = torch.tensor(sequence) + 1
    return ids.to(share.model.device)


def _digest(requests: Sequence[GenerationRequest]) -> int:
    """Names the requests, which must be the same on every rank."""
    for index, request in enumerate(requests):
        if not request.prompt or request.max_new_tokens < 1:
            raise EngineError(
                f"Request {index} to generate has an empty prompt or max_new_tokens below 1; give it one of each."
            )
    digest = hashlib.sha256()
    for request in requests:
        facts = (len(request.prompt), request.max_new_tokens, *request.prompt, -1, *sorted(request.stop_ids))
        digest.update(np.array(facts, np.int64).tobytes())
    return int.from_bytes(digest.digest()[:7], "big")


@dataclass(slots=True)
class _Running:
    """A sequence in a slot: its request, and what it has got so far, the last of which is not in the cache yet."""

    index: int
    request: GenerationRequest
    ids: list[int]

    @property
    def position(self) -> int:
        return len(self.request.prompt) + len(self.ids) - 1

    def is_done(self) -> bool:
        request = self.request
        return (
            len(self.ids) >= request.max_new_tokens
            or self.ids[-1] in request.stop_ids
            or (request.is_done is not None and request.is_done(self.ids))
        )


def _continue_all(
    model: _LockStep, requests: Sequence[GenerationRequest], mine: Sequence[int], cache_tokens: int
) -> dict[int, list[int]]:
    """This replica's requests, longest first; all of its ranks take the same way through here."""
    capacity = max(len(requests[i].prompt) + requests[i].max_new_tokens for i in mine)
    num_slots = model.whole_parts(min(len(mine), max(1, cache_tokens // capacity)))
    cache = KeyValueCache(num_slots, capacity)
    waiting, found = deque(mine), {}
    slots: list[_Running | None] = [None] * num_slots
    while waiting or any(slots):
        for slot in range(num_slots):
            while waiting and slots[slot] is None:
                index = waiting.popleft()
                sequence = _Running(index, requests[index], [])
                sequence.ids.append(model.prefill(cache, slot, requests[index].prompt))
                found[index] = sequence.ids
                slots[slot] = None if sequence.is_done() else sequence
        if not any(slots):
            continue
        tokens = [0 if sequence is None else sequence.ids[-1] for sequence in slots]
        positions = [0 if sequence is None else sequence.position for sequence in slots]
        for slot, token in enumerate(model.decode(cache, tokens, positions)):
            running = slots[slot]
            if running is not None:
                running.ids.append(token)
                slots[slot] = None if running.is_done() else running
    return found


class _LockStep:
    """The model of one replica: tokens in, the likeliest next ones out, on all of its ranks at once."""

    def __init__(self, chunks: Sequence[Any], vocab_size: int, in_step: InStep, longest: int) -> None:
        self.device = next(chunks[0].parameters()).device
        self._chunks, self._vocab_size, self._in_step = chunks, vocab_size, in_step
        self._config = chunks[0].config
        self._rope_table = chunks[0].rotary_pos_emb.get_emb(longest)
        self._parts = sequence_parts(self._config)
        self._pipeline = parallel_state.get_pipeline_model_parallel_group()
        stage, stages = parallel_state.get_pipeline_model_parallel_rank(), dist.get_world_size(self._pipeline)
        self._previous, self._following = (
            dist.get_global_rank(self._pipeline, (stage + step) % stages) for step in (-1, 1)
        )

    def whole_parts(self, length: int) -> int:
        """The next length that sequence parallelism can split."""
        return -(-length // self._parts) * self._parts

    def prefill(self, cache: KeyValueCache, slot: int, prompt: Sequence[int]) -> int:
        """The token after a prompt, which is then in the slot."""
        tokens_S = np.zeros(self.whole_parts(len(prompt)), np.int32)
        tokens_S[: len(prompt)] = prompt
        row = _row(tokens_S, np.arange(len(tokens_S)), wanted_W=np.array([len(prompt) - 1]))
        return self._next_tokens(row, Prefill(cache, slot, len(prompt)))[0]

    def decode(self, cache: KeyValueCache, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        """The token after each slot's newest one."""
        row = _row(np.array(tokens, np.int32), np.array(positions), wanted_W=np.arange(len(tokens)))
        return self._next_tokens(row, Decode(cache, positions, self.device))

    def _next_tokens(self, row: PackedRow, attention: CachedAttention) -> list[int]:
        last = torch.zeros(2, len(row.wanted_W), device=self.device)
        best = [last[0], last[1].long()]  # what a rank that has failed says
        for model in self._chunks:
            received = None if model.pre_process else self._receive(row)
            work = functools.partial(self._pass, model, row, attention, received, best)
            out = self._in_step.run(model, row, work)
            if not model.post_process:
                self._exchange(dist.P2POp(dist.isend, out.contiguous(), self._following, self._pipeline))
        ids_W = best[1]
        if self._chunks[-1].post_process:
            ids_W = _merge(*best)
        if dist.get_world_size(self._pipeline) > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(ids_W, source, group=self._pipeline)
        ids: list[int] = ids_W.tolist()
        return ids

    def _pass(
        self, model: Any, row: PackedRow, attention: CachedAttention, received: torch.Tensor | None, best: list[Any]
    ) -> torch.Tensor:
        out = forward_row(model, stage(row, self._rope_table, self._config, attention), received)
        if model.post_process:
            (wanted,) = move([row.wanted_W], self.device)
            best[:] = self._likeliest(model, pick(out[:, 0], wanted, self._config.sequence_parallel))
        return out

    def _likeliest(self, model: Any, hidden_WH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Largest logit and its first token among this rank's rows of the vocabulary; padding rows are none."""
        weight = model.output_layer.weight
        if weight is None:
            weight = model.shared_embedding_or_output_weight()
        first = parallel_state.get_tensor_model_parallel_rank() * weight.shape[0]
        weight_VH = weight[: max(0, min(weight.shape[0], self._vocab_size - first))]
        if not len(weight_VH):
            nothing = hidden_WH.new_full((len(hidden_WH),), -torch.inf, dtype=torch.float32)
            return nothing, nothing.new_zeros(len(hidden_WH), dtype=torch.int64)
        logits_WV = F.linear(hidden_WH, weight_VH).float()
        winner = logits_WV.argmax(-1)
        return logits_WV.gather(-1, winner[:, None])[:, 0], winner + first

    def _receive(self, row: PackedRow) -> torch.Tensor:
        shape = (len(row.tokens_S) // self._parts, 1, self._config.hidden_size)
        received = torch.empty(shape, dtype=self._config.pipeline_dtype, device=self.device)
        self._exchange(dist.P2POp(dist.irecv, received, self._previous, self._pipeline))
        return received

    @staticmethod
    def _exchange(operation: Any) -> None:
        for request in dist.batch_isend_irecv([operation]):
            request.wait()


def _merge(top_W: torch.Tensor, winner_W: torch.Tensor) -> torch.Tensor:
    """The first token with the largest logit over the tensor-parallel ranks; NaN, which no rank wins, gives 0."""
    group = parallel_state.get_tensor_model_parallel_group()
    overall = top_W.clone()
    dist.all_reduce(overall, dist.ReduceOp.MAX, group=group)
    winner = torch.where(top_W == overall, winner_W, torch.iinfo(torch.int64).max)
    dist.all_reduce(winner, dist.ReduceOp.MIN, group=group)
    return torch.where(winner == torch.iinfo(torch.int64).max, 0, winner)


def _row(tokens_S: np.ndarray, positions_S: np.ndarray, *, wanted_W: np.ndarray) -> PackedRow:
    """Tokens on their way through the model as scoring packs them; what sees what is for the cache to say."""
    nothing = np.zeros(0, np.int64)
    length = len(tokens_S)
    return PackedRow(length, 0, 0, tokens_S, positions_S, nothing, length, wanted_W, nothing, nothing, nothing)
