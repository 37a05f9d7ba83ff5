"""A step's batch where the model lives, one microbatch after another: the same for every engine.

Numbers go to a GPU from page-locked memory, so that the host gives it the next microbatch without waiting for the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pretrain.engine.base import Batch
from pretrain.engine.device import to_device
from pretrain.model.layers.document_mask import document_mask


@dataclass(frozen=True, slots=True)
class Microbatch:
    """What one forward pass of a rank needs; S are this rank's positions of the sequence.

    Attributes:
        tokens_BS: int64 token ids.
        labels_BS: int64, the token behind each.
        position_ids_BS: int64.
        mask: what sees what, added to the logits of attention; None where every position sees all before it.
        weights_BS: float32 factor of each target's loss; None for one each.
    """

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    mask: torch.Tensor | None
    weights_BS: torch.Tensor | None


def microbatches(
    batch: Batch, positions: Sequence[torch.Tensor], *, context_rank: int = 0, dtype: torch.dtype
) -> Iterator[Microbatch]:
    """The microbatches of a batch on the device of the positions.

    Args:
        batch: this data-parallel rank's share.
        positions: int64, the positions of the sequence that each context-parallel rank computes.
        context_rank: which of those ranks this is.
        dtype: of the mask: that of activations.
    """
    mine, device = positions[context_rank], positions[context_rank].device
    tokens_MBT = to_device(batch.tokens_MBT, device).long()
    position_ids = mine.expand(tokens_MBT.shape[1], -1)
    for number, tokens_BT in enumerate(tokens_MBT):
        if len(positions) == 1:
            tokens, labels = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
        else:
            tokens, labels = tokens_BT[:, mine], tokens_BT[:, mine + 1]
        mask = weights = None
        if batch.ends_MBS is not None:
            ends_BS = to_device(batch.ends_MBS[number], device)
            mask = document_mask(ends_BS, dtype=dtype, query_at=mine, key_at=torch.cat(list(positions)))
        if batch.weights_MBS is not None:
            weights = to_device(batch.weights_MBS[number], device)[:, mine]
        yield Microbatch(tokens, labels, position_ids, mask, weights)
