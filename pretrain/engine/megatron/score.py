"""Forward-only scoring on the live sharded model: token log-probabilities of packed rows in any layout.

The method: hidden states of wanted positions only go through the output layer; each tensor-parallel rank
computes maximum, sum of exponentials, target and argmax over its own vocabulary rows, and these are merged by
all-reduce once per call. A gathered [batch, sequence, vocabulary] never exists and padding rows of the
vocabulary are never computed. Context-parallel ranks score as further replicas. Pipelines run a lockstep ring
of one batched exchange a tick: all shapes are known from the rows, and no exchange can be waited for in
another order than it was sent.

Of megatron-core only public parts are used: `embedding`, `decoder`, `rotary_pos_emb.get_emb`,
`set_input_tensor`, `output_layer.weight`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state

from pretrain.engine.base import PackedRow, PackedRows, TokenLogProbs
from pretrain.engine.megatron import groups
from pretrain.engine.megatron.in_step import InStep
from pretrain.errors import EngineError
from pretrain.model.layers.attention import TreeMask

_HEAD_CHUNK = 256
"""Positions whose logits exist at one time: 256 · 32,000 · 4 bytes = 33 MB."""


def score_rows(chunks: Sequence[Any], rows: PackedRows, *, vocab_size: int) -> TokenLogProbs:
    """Log-probabilities of every (position, target) pair. Every rank calls it with the same rows.

    Args:
        chunks: this rank's bare model chunks, in evaluation mode (see `evaluation`).
        rows: what to score.
        vocab_size: true vocabulary, without padding rows.

    Returns:
        The same bits on every rank.

    Raises:
        EngineError: ranks were given different rows, a row does not fit the layout, or a rank failed on the way (out
            of memory); the same on every rank, all of which can score again.
    """
    config = chunks[0].config
    device = next(chunks[0].parameters()).device
    _refuse_misfits(rows, config, device)
    rank, size = groups.replicas()
    mine = [rows.rows[i] for i in split_by_tokens([len(r.tokens_S) for r in rows.rows], size)[rank]]
    longest = max((int(r.positions_S.max()) for r in rows.rows), default=0) + 1
    head = _Head(vocab_size)
    in_step = InStep()
    _run_ring(chunks, mine, chunks[0].rotary_pos_emb.get_emb(longest), head, in_step)
    in_step.agree()
    answers = head.merge(rows.num_pairs, device)
    if dist.get_world_size() > 1:
        dist.all_reduce(answers)  # exactly one rank speaks for each pair, so the sum has no rounding
    result = answers.cpu().numpy()
    return TokenLogProbs(log_prob_P=result[0], is_greedy_P=result[1] > 0.5)


def split_by_tokens(lengths: Sequence[int], replicas: int) -> list[list[int]]:
    """Rows to replicas, longest first to the least loaded; the same answer on every rank."""
    load, parts = [0] * replicas, [[] for _ in range(replicas)]  # type: ignore[var-annotated]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        target = min(range(replicas), key=lambda r: (load[r], r))
        parts[target].append(index)
        load[target] += lengths[index]
    return parts


@contextlib.contextmanager
def evaluation(chunks: Sequence[Any], wrappers: Sequence[Any]) -> Iterator[None]:
    """Evaluation mode without gradients; everything it touches is put back. Every rank enters it.

    Args:
        chunks: bare model chunks.
        wrappers: their DistributedDataParallel wrappers. With overlapped parameter gather the weights are stale
            until the next forward, and the wrapper's hooks would start collectives on ranks that have rows only:
            weights are gathered here once, and the hooks are away meanwhile.
    """
    training = [[module.training for module in chunk.modules()] for chunk in chunks]
    random_state = torch.get_rng_state()
    pool = parallel_state.get_global_memory_buffer().buffer  # sequence parallel gathers into a pool that only grows
    pooled = dict(pool)
    hooked = [wrapper for wrapper in wrappers if wrapper.ddp_config.overlap_param_gather]
    try:
        for wrapper in hooked:
            wrapper.disable_forward_pre_hook(param_sync=True)
        for chunk in chunks:
            chunk.eval()
        with torch.no_grad():
            yield
    finally:
        torch.set_rng_state(random_state)
        pool.clear()
        pool.update(pooled)
        for chunk, flags in zip(chunks, training, strict=True):
            chunk.decoder.set_input_tensor(None)
            for module, flag in zip(chunk.modules(), flags, strict=True):
                module.training = flag
        for wrapper in hooked:
            wrapper.enable_forward_pre_hook()


def _refuse_misfits(rows: PackedRows, config: Any, device: torch.device) -> None:
    parts = config.tensor_model_parallel_size if config.sequence_parallel else 1
    misfit = next((len(r.tokens_S) for r in rows.rows if len(r.tokens_S) % parts), None)
    digest = int.from_bytes(bytes.fromhex(rows.digest)[:7], "big")
    told = torch.tensor([digest, -digest, int(misfit is not None)], dtype=torch.int64, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    if told[0] != -told[1]:
        raise EngineError("Ranks were given different rows to score; the plan must be the same file on every rank.")
    if told[2]:
        raise EngineError(
            f"A row of {misfit} tokens cannot be split over parallel.tensor={parts} with parallel.sequence=true; "
            f"compile the plan with a multiple of {parts}."
        )


def _run_ring(
    chunks: Sequence[Any], rows: Sequence[PackedRow], rope_table: torch.Tensor, head: _Head, in_step: InStep
) -> None:
    """Runs this replica's rows through the pipeline, one batched exchange per tick; a rank that fails goes on."""
    config = chunks[0].config
    device = next(chunks[0].parameters()).device
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    group = parallel_state.get_pipeline_model_parallel_group()
    following, previous = (dist.get_global_rank(group, (stage + d) % stages) for d in (1, -1))
    parts = config.tensor_model_parallel_size if config.sequence_parallel else 1
    ticks = list(_schedule(len(rows), stages, len(chunks)))
    masks: dict[int, TreeMask] = {}
    received: torch.Tensor | None = None
    for tick in range(len(ticks) + stages - 1):
        out, at = None, tick - stage
        if 0 <= at < len(ticks) and ticks[at][0] is not None:
            index, virtual = ticks[at]
            work = functools.partial(_pass, chunks[virtual], index, rows[index], masks, rope_table, received, head)
            out = in_step.run(chunks[virtual], rows[index], work)
            if virtual == len(chunks) - 1:
                masks.pop(index, None)
            if chunks[virtual].post_process:
                out = None
        if stages == 1:
            continue
        received = None
        exchange = [] if out is None else [dist.P2POp(dist.isend, out.contiguous(), following, group)]
        upcoming = ticks[at + 1] if 0 <= at + 1 < len(ticks) else (None, 0)
        if upcoming[0] is not None and not chunks[upcoming[1]].pre_process:
            length = len(rows[upcoming[0]].tokens_S) // parts
            received = torch.empty(length, 1, config.hidden_size, dtype=config.pipeline_dtype, device=device)
            exchange.append(dist.P2POp(dist.irecv, received, previous, group))
        for request in dist.batch_isend_irecv(exchange) if exchange else []:
            request.wait()


def _pass(
    model: Any,
    index: int,
    row: PackedRow,
    masks: dict[int, TreeMask],
    rope_table: torch.Tensor,
    received: torch.Tensor | None,
    head: _Head,
) -> torch.Tensor:
    """One row through one chunk, and through the head behind the last one."""
    if index not in masks:
        masks[index] = TreeMask(row, rope_table.device)
    out = _forward(model, row, masks[index], rope_table, received)
    if model.post_process:
        head.add(model, out, row)
    return out


def _schedule(num_rows: int, stages: int, num_chunks: int) -> Iterator[tuple[Any, int]]:
    """(row or None, chunk) in the order of every stage: rows in groups of `stages`, for each group all chunks."""
    for first in range(0, num_rows, stages):
        for virtual in range(num_chunks):
            for index in range(first, first + stages):
                yield (index if index < num_rows else None), virtual


def _forward(
    model: Any, row: PackedRow, mask: TreeMask, rope_table: torch.Tensor, received: torch.Tensor | None
) -> torch.Tensor:
    """Hidden states [S (/ tensor parallel), 1, H] after this chunk."""
    device = rope_table.device
    hidden = None
    if model.pre_process:
        ids = torch.as_tensor(row.tokens_S, dtype=torch.long, device=device)
        hidden = model.embedding(input_ids=ids[None], position_ids=None)
    else:
        model.set_input_tensor(received)
    rope = rope_table[torch.as_tensor(row.positions_S, dtype=torch.long, device=device)]
    return model.decoder(hidden_states=hidden, attention_mask=mask, rotary_pos_emb=rope)


@dataclass
class _Head:
    """This rank's share of log-softmax at every wanted position, merged over tensor parallelism at the end."""

    vocab_size: int
    maximum: list[torch.Tensor] = field(default_factory=list)
    argmax: list[torch.Tensor] = field(default_factory=list)
    exp_sum: list[torch.Tensor] = field(default_factory=list)
    target_logit: list[torch.Tensor] = field(default_factory=list)
    pair_position: list[torch.Tensor] = field(default_factory=list)
    pair_target: list[torch.Tensor] = field(default_factory=list)
    pair_id: list[torch.Tensor] = field(default_factory=list)
    num_positions: int = 0

    def add(self, model: Any, hidden_S1H: torch.Tensor, row: PackedRow) -> None:
        """Adds one row: logits in chunks of positions, reduced at once."""
        device = hidden_S1H.device
        wanted = torch.as_tensor(row.wanted_W, device=device)
        hidden = _pick(hidden_S1H[:, 0], wanted, model.config.sequence_parallel)
        weight = model.output_layer.weight
        if weight is None:
            weight = model.shared_embedding_or_output_weight()
        first = parallel_state.get_tensor_model_parallel_rank() * weight.shape[0]
        real = max(0, min(weight.shape[0], self.vocab_size - first))
        position = torch.as_tensor(row.pair_wanted_P, device=device)
        target = torch.as_tensor(row.pair_target_P, device=device)
        target_logit = torch.zeros(len(target), dtype=torch.float32, device=device)
        for start in range(0, len(hidden), _HEAD_CHUNK):
            part = hidden[start : start + _HEAD_CHUNK]
            if real:
                logits = F.linear(part, weight[:real]).float()
                top, arg = logits.max(-1)
                here = (
                    (position >= start) & (position < start + _HEAD_CHUNK) & (target >= first) & (target < first + real)
                )
                target_logit[here] = logits[position[here] - start, target[here] - first]
                total = logits.sub_(top[:, None]).exp_().sum(-1)
            else:  # this rank holds padding rows only
                top = torch.full((len(part),), -torch.inf, device=device)
                arg = torch.zeros(len(part), dtype=torch.long, device=device)
                total = torch.zeros(len(part), device=device)
            self.maximum.append(top)
            self.argmax.append(arg + first)
            self.exp_sum.append(total)
        self.target_logit.append(target_logit)
        self.pair_position.append(position + self.num_positions)
        self.pair_target.append(target)
        self.pair_id.append(torch.as_tensor(row.pair_id_P, device=device))
        self.num_positions += len(hidden)

    def merge(self, num_pairs: int, device: torch.device) -> torch.Tensor:
        """[2, num_pairs] float64: log-probability and greedy flag, zeros where another rank speaks."""
        answers = torch.zeros(2, num_pairs, dtype=torch.float64, device=device)
        if not self.num_positions:
            return answers
        local_max, arg, total, logit = (
            torch.cat(t) for t in (self.maximum, self.argmax, self.exp_sum, self.target_logit)
        )
        group = parallel_state.get_tensor_model_parallel_group()
        top = local_max.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        total = total * (local_max - top).exp()
        total = _sum_in_order(total, group)
        dist.all_reduce(logit, group=group)  # all but one rank add zero: no rounding
        arg = torch.where(local_max == top, arg, torch.iinfo(torch.int64).max)
        dist.all_reduce(arg, dist.ReduceOp.MIN, group=group)
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            at, target, ids = (torch.cat(t) for t in (self.pair_position, self.pair_target, self.pair_id))
            answers[0, ids] = logit.double() - top[at].double() - total[at].double().log()
            answers[1, ids] = (arg[at] == target).double()
        return answers


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


def _pick(hidden_SH: torch.Tensor, wanted_W: torch.Tensor, sequence_parallel: bool) -> torch.Tensor:
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
