"""From losses per token to what is differentiated and what is reported; both engines' steps end here."""

from __future__ import annotations

import torch


def summed(losses: torch.Tensor, weights_BS: torch.Tensor | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Sums over a microbatch's targets.

    Args:
        losses: [B, S] cross entropy, or with z-loss [2, B, S]: cross entropy, z-loss.
        weights_BS: fp32 factor of each target (`Batch.weights_MBS`); None is one for each.

    Returns:
        The fp32 sum to differentiate, and the detached sums of cross entropy and, where there is one, z-loss.
    """
    parts_BS = list(losses) if losses.dim() == 3 else [losses]
    weighted_BS = [part if weights_BS is None else part.float() * weights_BS for part in parts_BS]
    sums = [part_BS.float().sum() for part_BS in weighted_BS]
    return sums[0] if len(sums) == 1 else sums[0] + sums[1], [one.detach() for one in sums]
