"""Forward-only scoring on the live sharded model: token log-probabilities of packed rows in any layout.

The method: hidden states of wanted positions only go through the output layer; each tensor-parallel rank
computes maximum, sum of exponentials, target and argmax over its own vocabulary rows, and these are merged by
all-reduce once per call (`head.py`). A gathered [batch, sequence, vocabulary] never exists and padding rows of the
vocabulary are never computed. Context-parallel ranks score as further replicas. Pipelines run a lockstep ring
of one batched exchange a tick: all shapes are known from the rows, and no exchange can be waited for in
another order than it was sent.

Of megatron-core only public parts are used: `embedding`, `decoder`, `rotary_pos_emb.get_emb`,
`set_input_tensor`, `output_layer.weight`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.engine.agree import agree
from pretrain.engine.base import PackedRow, PackedRows, TokenLogProbs
from pretrain.engine.sharded import groups
from pretrain.engine.sharded.head import Head
from pretrain.engine.sharded.in_step import InStep
from pretrain.engine.sharded.staged import StagedRow, divisible, sequence_parts, stage
from pretrain.errors import EngineError


def score_rows(
    chunks: Sequence[Any], rows: PackedRows, *, vocab_size: int, run: Callable[..., None] | None = None
) -> TokenLogProbs:
    """Log-probabilities of every (position, target) pair. Every rank calls it with the same rows.

    Args:
        chunks: this rank's bare model chunks, in evaluation mode (see `evaluation`).
        rows: what to score.
        vocab_size: true vocabulary, without padding rows.
        run: how rows pass through the model, with the signature of `run_ring`, which is the default.

    Returns:
        The same bits on every rank.

    Raises:
        EngineError: ranks were given different rows, or a rank failed on the way (out of memory); the same on every
            rank, all of which can score again.
    """
    device = next(chunks[0].parameters()).device
    in_step = InStep()
    share = in_step.attempt(lambda: _share(chunks, rows))
    if not in_step.agree(number=share.digest if share is not None else 0):
        raise EngineError("Ranks were given different rows to score; the plan must be the same file on every rank.")
    assert share is not None, "a rank without a share has failed"
    head = Head(vocab_size)
    (run or run_ring)(chunks, share.rows, share.rope_table, head, in_step, most_rows=share.most_rows)
    in_step.attempt(lambda: head.put_together(rows.num_pairs, device))
    in_step.agree()
    answers = head.merge(rows.num_pairs, device)
    if dist.get_world_size() > 1:
        dist.all_reduce(answers)  # exactly one rank speaks for each pair, so the sum has no rounding
    result = answers.cpu().numpy()
    return TokenLogProbs(log_prob_P=result[0], is_greedy_P=result[1] > 0.5)


@dataclass(frozen=True, slots=True)
class _Share:
    """What one replica scores.

    Attributes:
        digest: of all rows, the same on every rank.
        rows: this replica's.
        most_rows: the most that any replica has.
        rope_table: rotary embeddings of every position.
    """

    digest: int
    rows: list[PackedRow]
    most_rows: int
    rope_table: torch.Tensor


def _share(chunks: Sequence[Any], rows: PackedRows) -> _Share:
    """This rank's own work before the first pass."""
    rank, size = groups.replicas()
    shares = split_by_tokens([len(r.tokens_S) for r in rows.rows], size)
    longest = max((int(r.positions_S.max()) for r in rows.rows), default=0) + 1
    return _Share(
        digest=int.from_bytes(bytes.fromhex(rows.digest)[:7], "big"),
        rows=[divisible(rows.rows[i], sequence_parts(chunks[0].config)) for i in shares[rank]],
        most_rows=max(map(len, shares)),
        rope_table=chunks[0].rotary_pos_emb.get_emb(longest),
    )


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

    It begins with `agree`, before the first collective that a rank which failed on its way here would not join.

    Args:
        chunks: bare model chunks.
        wrappers: their DistributedDataParallel wrappers. With overlapped parameter gather the weights are stale
            until the next forward, and the wrapper's hooks would start collectives on ranks that have rows only:
            weights are gathered here once, and the hooks are away meanwhile.
    """
    agree()
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


def run_ring(
    chunks: Sequence[Any],
    rows: Sequence[PackedRow],
    rope_table: torch.Tensor,
    head: Head,
    in_step: InStep,
    *,
    most_rows: int,
) -> None:
    """Runs this replica's rows through the pipeline, one batched exchange per tick; a rank that fails goes on.

    Args:
        chunks: this rank's chunks.
        rows: this replica's rows.
        rope_table: rotary embeddings of every position.
        head: what the last chunk adds to.
        in_step: keeps a failed rank in step.
        most_rows: the most that any replica has; without a meaning here, where replicas do not meet.
    """
    config = chunks[0].config
    device = next(chunks[0].parameters()).device
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    group = parallel_state.get_pipeline_model_parallel_group()
    following, previous = (dist.get_global_rank(group, (stage + d) % stages) for d in (1, -1))
    parts = sequence_parts(config)
    ticks = list(_schedule(len(rows), stages, len(chunks)))
    staged: dict[int, StagedRow] = {}
    received: torch.Tensor | None = None
    for tick in range(len(ticks) + stages - 1):
        out, at = None, tick - stage
        if 0 <= at < len(ticks) and ticks[at][0] is not None:
            index, virtual = ticks[at]
            work = functools.partial(run_chunk, chunks[virtual], index, rows[index], staged, rope_table, received, head)
            out = in_step.run(chunks[virtual], rows[index], work)
            if virtual == len(chunks) - 1:
                staged.pop(index, None)
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


def run_chunk(
    model: Any,
    index: int,
    row: PackedRow,
    staged: dict[int, StagedRow],
    rope_table: torch.Tensor,
    received: torch.Tensor | None,
    head: Head,
) -> torch.Tensor:
    """One row through one chunk, and through the head behind the last one."""
    if index not in staged:
        staged[index] = stage(row, rope_table, model.config)
    out = forward_row(model, staged[index], received)
    if model.post_process:
        head.add(model, out, row)
    return out


def _schedule(num_rows: int, stages: int, num_chunks: int) -> Iterator[tuple[Any, int]]:
    """(row or None, chunk) in the order of every stage: rows in groups of `stages`, for each group all chunks."""
    for first in range(0, num_rows, stages):
        for virtual in range(num_chunks):
            for index in range(first, first + stages):
                yield (index if index < num_rows else None), virtual


def forward_row(model: Any, row: StagedRow, received: torch.Tensor | None) -> torch.Tensor:
    """Hidden states [S (/ tensor parallel), 1, H] after this chunk."""
    hidden = None
    if model.pre_process:
        hidden = model.embedding(input_ids=row.tokens_1S, position_ids=None)
    else:
        model.set_input_tensor(received)
    return model.decoder(hidden_states=hidden, attention_mask=row.mask, rotary_pos_emb=row.rope_S11D)
