"""Where a model's tensors can be read from, part by part: what checkpoints and Hugging Face folders have in common.

A local parameter of any layout is filled from rectangles of whole tensors; who keeps the tensors, and how, is left
to the subclasses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.checkpoint.blocks import Block, boxes
from pretrain.errors import CheckpointError

_PIECE_ELEMENTS = 16 * 2**20


class TensorSource(ABC):
    """Whole tensors of a model, of which any part can be read: a checkpoint of ours, or a Hugging Face folder.

    Attributes:
        path: where it lies.
    """

    path: Path

    @abstractmethod
    def shape(self, key: str) -> tuple[int, ...]:
        """Global shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """

    @abstractmethod
    def region(self, key: str, kind: str, offset: Sequence[int], out: np.ndarray) -> None:
        """Writes the rectangle of a global tensor that begins at `offset` and has the shape of `out` into `out`.

        Args:
            key: tensor name.
            kind: one of the kinds that are there.
            offset: first index per axis.
            out: float32, one axis per axis of the tensor.

        Raises:
            CheckpointError: tensor or kind not there, a region outside it, or damaged bytes.
        """

    @torch.no_grad()
    def fill(self, blocks: Sequence[Block], kind: str, out: Tensor, start: int = 0) -> None:
        """Writes flat elements [start, start + len(out)) of a local parameter into `out`.

        Args:
            blocks: the blocks the local parameter is made of, whether owned or copies.
            kind: one of the checkpoint's kinds.
            out: 1-D, any float dtype and device; fp32 on CPU is filled in place, others through a bounded buffer.
            start: first flat element of the local parameter.

        Raises:
            CheckpointError: tensor or kind not in the checkpoint, other shapes, or damaged bytes.
        """
        if out.dtype != torch.float32 or out.device.type != "cpu" or not out.is_contiguous():
            for at in range(0, out.numel(), _PIECE_ELEMENTS):
                piece = torch.empty(min(_PIECE_ELEMENTS, out.numel() - at))
                self.fill(blocks, kind, piece, start + at)
                out[at : at + piece.numel()].copy_(piece)
            return
        buffer, end, filled = out.detach().numpy(), start + out.numel(), 0
        for block in blocks:
            if self.shape(block.key) != tuple(block.global_shape):
                raise CheckpointError(
                    f"{block.key} has shape {block.global_shape} in the model and {self.shape(block.key)} in "
                    f"{self.path}. Resume with the model configuration and tokenizer of the checkpoint."
                )
            first = max(start, block.local_start) - block.local_start
            last = min(end, block.local_start + block.numel) - block.local_start
            for flat, offset, extent in boxes(block.shape, first, last):
                at, size = block.local_start + flat - start, math.prod(extent)
                corner = [a + b for a, b in zip(block.offset, offset, strict=True)]
                self.region(block.key, kind, corner, buffer[at : at + size].reshape(extent))
                filled += size
        assert filled == out.numel(), f"blocks cover {filled} of {out.numel()} elements asked for"
