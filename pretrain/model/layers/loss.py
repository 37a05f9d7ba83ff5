"""Cross entropy together with the softmax's normaliser, over a vocabulary split among tensor-parallel ranks.

Megatron's own cross entropy is used where there is no z-loss; it does not give out log Z, and a second pass over the
logits would cost a second fp32 copy of them, the largest tensor of a step. Here one softmax serves both gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


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


class _CrossEntropyAndLogZ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels_SB: torch.Tensor, group: dist.ProcessGroup
    ) -> tuple[torch.Tensor, torch.Tensor]:
        part = logits.shape[-1]
        index_SB = labels_SB - group.rank() * part
        here_SB = (index_SB >= 0) & (index_SB < part)
        index_SB = index_SB.where(here_SB, 0)
        top_SB = logits.amax(-1).float()
        dist.all_reduce(top_SB, dist.ReduceOp.MAX, group=group)
        shifted = logits.float() - top_SB[..., None]
        target_SB = shifted.gather(-1, index_SB[..., None])[..., 0].masked_fill(~here_SB, 0.0)
        softmax = shifted.exp_()
        sums_2SB = torch.stack([softmax.sum(-1), target_SB])
        dist.all_reduce(sums_2SB, group=group)
        total_SB, target_SB = sums_2SB
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
