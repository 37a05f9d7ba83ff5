"""Cross entropy together with the softmax's normaliser, over a vocabulary split among tensor-parallel ranks.

From whole logits: Megatron's own cross entropy is used where there is no z-loss; it does not give out log Z, and a
second pass over the logits would cost a second fp32 copy of them. Here one softmax serves both gradients.

From hidden states, some tokens at a time: in fp32, logits of a microbatch are the largest tensor of a step, and they
never exist. In bf16 the products are kept for backward as they are, 2 bytes each, so nothing is computed twice and
nothing is rounded that whole logits would not round. In fp32 they are computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pretrain.model.layers.compiled import fast
from pretrain.model.layers.weight_gradient import accumulate, handed_over

_CPU_CHUNK_BYTES = 2**26
"""Of a chunk's logits in fp32: 512 tokens by 32,768 vocabulary rows."""
_DEVICE_CHUNK_BYTES = 2**28
"""2,048 tokens by 32,768 vocabulary rows: few large kernels."""
_TOKENS_MULTIPLE = 256
_COLUMNS_MULTIPLE = 64
"""Tensor cores want rows of logits that begin at multiples of 16 bytes."""


def cross_entropy_and_log_z(
    logits: torch.Tensor, labels: torch.Tensor, *, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token -log softmax(logits)[label] and log Σ exp(logits). Every rank of the group calls it.

    Args:
        logits: [S, B, V / tensor parallel], this rank's part of the vocabulary; -inf for rows that are padding.
        labels: int64 [S, B], in the whole vocabulary, never padding.
        group: the tensor-parallel group, in the order of the vocabulary's parts.

    Returns:
        Both fp32 [S, B], nats, the same on every rank of the group.
    """
    return _CrossEntropyAndLogZ.apply(logits, labels, group)


def linear_cross_entropy(
    hidden_SBH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_SB: torch.Tensor,
    *,
    vocab_size_here: int,
    group: dist.ProcessGroup,
    compiled: bool,
    accumulate_into_main_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cross_entropy_and_log_z` of hidden @ weightᵀ, a chunk of tokens at a time. Every rank of the group calls it.

    The gradient of the hidden states is this rank's part of a sum over the group; the caller's collective adds it up.
    The weight's is summed over chunks in fp32. Deterministic.

    Args:
        hidden_SBH: in the compute format; all tokens, also with sequence parallelism.
        weight_VH: this rank's part of the vocabulary, in the same format.
        labels_SB: int64, in the whole vocabulary, never padding.
        vocab_size_here: leading rows of the part that are not padding; 0 where all are.
        group: the tensor-parallel group, in the order of the vocabulary's parts.
        compiled: whether the elementwise functions are.
        accumulate_into_main_grad: add the weight's gradient to `weight.main_grad` where there is one, with
            Megatron's marks of it (see `weight_gradient.handed_over`), and not to `weight.grad`.

    Returns:
        Both fp32 [S, B], nats, the same on every rank of the group.
    """
    keep = torch.is_grad_enabled() and hidden_SBH.dtype != torch.float32
    tokens = hidden_SBH.flatten(0, 1), weight_VH, labels_SB.flatten()
    loss_T, log_z_T = _LinearCrossEntropy.apply(
        *tokens, vocab_size_here, group, compiled, accumulate_into_main_grad, keep
    )
    return loss_T.view(labels_SB.shape), log_z_T.view(labels_SB.shape)


class _CrossEntropyAndLogZ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels_SB: torch.Tensor, group: dist.ProcessGroup
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index_SB = _index_here(labels_SB, logits.shape[-1], logits.shape[-1], group)
        here_SB, index_SB = index_SB >= 0, index_SB.clamp(min=0)
        top_SB = _all_reduce(logits.amax(-1).float(), dist.ReduceOp.MAX, group)
        shifted = logits.float() - top_SB[..., None]
        target_SB = shifted.gather(-1, index_SB[..., None])[..., 0].masked_fill(~here_SB, 0.0)
        softmax = shifted.exp_()
        total_SB, target_SB = _all_reduce(torch.stack([softmax.sum(-1), target_SB]), dist.ReduceOp.SUM, group)
        ctx.save_for_backward(softmax.div_(total_SB[..., None]), index_SB, here_SB)
        ctx.dtype = logits.dtype
        log_total_SB = total_SB.log()
        return log_total_SB - target_SB, log_total_SB + top_SB

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Softmax - onehot for the cross entropy, softmax for log Z; in place, so it runs once."""
        softmax, index_SB, here_SB = ctx.saved_tensors
        of_loss_SB, of_log_z_SB = gradients
        softmax.mul_((of_loss_SB + of_log_z_SB)[..., None])
        softmax.scatter_add_(-1, index_SB[..., None], -(of_loss_SB * here_SB)[..., None])
        return softmax.to(ctx.dtype), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_T: torch.Tensor,
        vocab_size_here: int,
        group: dist.ProcessGroup,
        compiled: bool,
        accumulate_into_main_grad: bool,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.vocab_size_here, ctx.compiled = vocab_size_here, compiled
        ctx.accumulate_into_main_grad = accumulate_into_main_grad
        index_T = _index_here(labels_T, len(weight_VH), vocab_size_here, group)
        columns_VH = weight_VH[: _num_columns(vocab_size_here, len(weight_VH))]
        top_T = torch.full(labels_T.shape, -torch.inf, device=hidden_TH.device)
        total_T, target_T = torch.zeros_like(top_T), torch.zeros_like(top_T)
        statistics, kept = fast(_statistics, compiled), []
        for rows in _chunks(hidden_TH, columns_VH):
            logits_CV = F.linear(hidden_TH[rows], columns_VH)
            top_T[rows], total_T[rows], target_T[rows] = statistics(logits_CV, vocab_size_here, index_T[rows])
            if keep:
                kept.append(logits_CV)
        top_here_T = top_T.clone()
        _all_reduce(top_T, dist.ReduceOp.MAX, group)
        target_T = (target_T - top_T).masked_fill(index_T < 0, 0.0)
        sums_2T = torch.stack([total_T * (top_here_T - top_T).exp(), target_T])
        total_T, target_T = _all_reduce(sums_2T, dist.ReduceOp.SUM, group)
        ctx.save_for_backward(hidden_TH, weight_VH, index_T, top_T, total_T, *kept)
        log_total_T = total_T.log()
        return log_total_T - target_T, log_total_T + top_T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TH, weight_VH, index_T, top_T, total_T, *kept = ctx.saved_tensors
        columns_VH = weight_VH[: _num_columns(ctx.vocab_size_here, len(weight_VH))]
        straight = ctx.accumulate_into_main_grad and hasattr(weight_VH, "main_grad")
        of_hidden_TH = torch.zeros_like(hidden_TH)
        of_weight_VH = None
        if ctx.needs_input_grad[1]:
            of_weight_VH = weight_VH.main_grad if straight else torch.zeros_like(weight_VH, dtype=torch.float32)
        gradient = fast(_gradient, ctx.compiled)
        for number, rows in enumerate(_chunks(hidden_TH, columns_VH)):
            logits_CV = kept[number] if kept else F.linear(hidden_TH[rows], columns_VH)
            per_token = (tensor_T[rows] for tensor_T in (index_T, top_T, total_T, *gradients))
            of_logits_CV = gradient(logits_CV, ctx.vocab_size_here, *per_token)
            torch.mm(of_logits_CV, columns_VH, out=of_hidden_TH[rows])
            if of_weight_VH is not None:
                accumulate(of_weight_VH[: len(columns_VH)], of_logits_CV, hidden_TH[rows])
        if of_weight_VH is not None:
            of_weight_VH = handed_over(weight_VH) if straight else of_weight_VH.to(weight_VH.dtype)
        return of_hidden_TH, of_weight_VH, None, None, None, None, None, None


def _statistics(
    logits_CV: torch.Tensor, num_real: int, index_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maximum, Σ exp(logit - maximum) and the logit of each token's index, all fp32 [C]; of index -1, any logit."""
    real_CV = _real(logits_CV, num_real)
    top_C = real_CV.amax(-1)
    target_C = logits_CV.gather(-1, index_C.clamp(min=0)[:, None])[:, 0].float()
    return top_C, (real_CV - top_C[:, None]).exp().sum(-1), target_C


def _gradient(
    logits_CV: torch.Tensor,
    num_real: int,
    index_C: torch.Tensor,
    top_C: torch.Tensor,
    total_C: torch.Tensor,
    of_loss_C: torch.Tensor,
    of_log_z_C: torch.Tensor,
) -> torch.Tensor:
    """Softmax - onehot for the cross entropy, softmax for log Z: fp32, rounded once to the logits' format."""
    softmax_CV = (_real(logits_CV, num_real) - top_C[:, None]).exp() / total_C[:, None]
    label_CV = torch.arange(logits_CV.shape[-1], device=logits_CV.device) == index_C[:, None]
    of_softmax_CV = softmax_CV * (of_loss_C + of_log_z_C)[:, None]
    return torch.where(label_CV, of_softmax_CV - of_loss_C[:, None], of_softmax_CV).to(logits_CV.dtype)


def _real(logits_CV: torch.Tensor, num_real: int) -> torch.Tensor:
    """In fp32, with no probability for columns after the real ones."""
    logits_CV = logits_CV.float()
    if num_real == logits_CV.shape[-1]:
        return logits_CV
    padding_V = torch.arange(logits_CV.shape[-1], device=logits_CV.device) >= num_real
    return logits_CV.masked_fill(padding_V, -torch.inf)


def _index_here(labels: torch.Tensor, part: int, num_real: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Labels as rows of this rank's part of the vocabulary, -1 where another rank has them."""
    index = labels - group.rank() * part
    return index.masked_fill((index < 0) | (index >= num_real), -1)


def _num_columns(num_real: int, part: int) -> int:
    """Vocabulary rows that are computed: the real ones, rounded up for the sake of alignment."""
    return min(part, -(-num_real // _COLUMNS_MULTIPLE) * _COLUMNS_MULTIPLE)


def _chunks(hidden_TH: torch.Tensor, columns_VH: torch.Tensor) -> Iterator[slice]:
    """Tokens whose logits exist at one time; none on a rank that has padding rows only."""
    if not len(columns_VH):
        return
    size_bytes = _CPU_CHUNK_BYTES if hidden_TH.device.type == "cpu" else _DEVICE_CHUNK_BYTES
    fitting = size_bytes // (4 * len(columns_VH))
    length = max(_TOKENS_MULTIPLE, fitting - fitting % _TOKENS_MULTIPLE)
    for start in range(0, len(hidden_TH), length):
        yield slice(start, start + length)


def _all_reduce(tensor: torch.Tensor, operation: Any, group: dist.ProcessGroup) -> torch.Tensor:
    """In place; nothing where the rank is alone."""
    if group.size() > 1:
        dist.all_reduce(tensor, operation, group=group)
    return tensor
