"""One step seen layer by layer: norms of gradients, weights and updates, activations, attention logits, entropy.

Every figure is a sum over elements, each of which exactly one rank contributes, or a maximum; so one sum and one
maximum over the whole job give the figures of the whole model in any layout, and each rank has them all. Sums of
squares are fp64. Weights come as the chunks that a checkpoint would write, which settles who speaks for replicated
and sharded state; activations are watched by forward hooks that exist only during an observed step, so that the
model knows nothing of this.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.checkpoint.blocks import Chunk
from pretrain.model.names import EMBEDDING, FINAL_NORM, OUTPUT, canonical_key
from pretrain.model.spec import ModelSpec
from pretrain.track import names

_OF_LAYER = {
    "self_attention.linear_qkv.weight": "attention_qkv",
    "self_attention.linear_proj.weight": "attention_out",
    "mlp.linear_fc1.weight": "mlp_in",
    "mlp.linear_fc2.weight": "mlp_out",
    "self_attention.linear_qkv.layer_norm_weight": "norms",
    "mlp.linear_fc1.layer_norm_weight": "norms",
}
_OUTSIDE = {EMBEDDING: "embedding", FINAL_NORM: "final_norm", OUTPUT: "output_layer"}
_LAYER_KEY = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_GRAD, _WEIGHT, _UPDATE, _SECOND_MOMENT = range(4)
_ENTROPY_CHUNK = 256
"""Positions whose probabilities exist at one time: 256 · 32,000 · 4 bytes = 33 MB."""

Part = tuple[int | None, str]
"""A layer, or None outside the layers, and a group of weights in it."""


class Observer:
    """Watches one step. Every rank makes one for the same step and calls its methods in their order.

    Args:
        chunks: this rank's bare model chunks.
        spec: sizes of the whole model.
    """

    def __init__(self, chunks: Sequence[Any], spec: ModelSpec) -> None:
        self._chunks, self._spec = chunks, spec
        self._parts = _parts(spec)
        self._index = {part: index for index, part in enumerate(self._parts)}
        device = next(chunks[0].parameters()).device
        self._squares = torch.zeros(len(self._parts), 4, dtype=torch.float64, device=device)
        self._residual = torch.zeros(spec.num_layers, 2, dtype=torch.float64, device=device)  # sum of squares, count
        self._entropy = torch.zeros(2, dtype=torch.float64, device=device)  # sum, count
        self._largest_logit = torch.zeros(spec.num_layers, dtype=torch.float64, device=device)
        self._before: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    @contextlib.contextmanager
    def activations(self) -> Iterator[None]:
        """Watches forward passes of training while it is entered.

        A layer that is computed again in backward is seen twice: a maximum and a mean of everything twice are the
        same.
        """
        handles = []
        for chunk in self._chunks:
            for layer in chunk.decoder.layers:
                index, core = layer.layer_number - 1, layer.self_attention.core_attention
                handles.append(layer.register_forward_hook(self._residual_hook(index)))
                handles.append(core.register_forward_pre_hook(self._logit_hook(index)))
            if chunk.post_process:
                handles.append(chunk.output_layer.register_forward_hook(self._entropy_hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def before_update(self, chunks: Iterable[Chunk]) -> None:
        """Takes gradients and weights as they are when the gradient is reduced and not yet clipped.

        Args:
            chunks: `MegatronState.chunks(gradients=True)`.
        """
        for chunk in chunks:
            real = _real_elements(chunk, self._spec.vocab_size)
            if not real:
                continue
            views = {kind: tensor[:real] for kind, tensor in chunk.tensors.items()}
            index = self._index[_part(chunk.block.key)]
            self._squares[index, _GRAD] += _sum_of_squares(views["grad"])
            self._squares[index, _WEIGHT] += _sum_of_squares(views["param"])
            self._before.append((index, views["param"], views["exp_avg_sq"], views["param"].clone()))

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """The figures of the whole model, after the update; the same on every rank.

        For the weights w of a part, its gradient g before clipping and Adam's second moment v: ‖g‖, ‖w‖, ‖Δw‖ / ‖w‖
        and ‖v‖, with w before, v after and Δw by the update, all of the fp32 master weights. Of a layer: the root
        mean square of its output and max |q·k| / √d. Of the model: the mean over tokens of -Σ p log p.
        Padding rows of the vocabulary count nowhere. A ratio to weights that are all zero is left out.
        """
        for index, after, second_moment, before in self._before:
            self._squares[index, _UPDATE] += _sum_of_squares(before.sub_(after))
            self._squares[index, _SECOND_MOMENT] += _sum_of_squares(second_moment)
        self._before.clear()
        sums = torch.cat([t.flatten() for t in (self._squares, self._residual, self._entropy)])
        if dist.get_world_size() > 1:
            dist.all_reduce(sums)
            dist.all_reduce(self._largest_logit, dist.ReduceOp.MAX)
        sizes = [t.numel() for t in (self._squares, self._residual, self._entropy)]
        squares, residual, entropy = (part.tolist() for part in sums.split(sizes))
        found = {}
        for index, (layer, group) in enumerate(self._parts):
            grad, weight, update, second = (math.sqrt(square) for square in squares[4 * index : 4 * index + 4])
            found[names.dynamics("grad_norm", layer=layer, group=group)] = grad
            found[names.dynamics("weight_norm", layer=layer, group=group)] = weight
            if weight:
                found[names.dynamics("update_ratio", layer=layer, group=group)] = update / weight
            found[names.dynamics("second_moment_norm", layer=layer, group=group)] = second
        for layer, largest in enumerate(self._largest_logit.tolist()):
            total, count = residual[2 * layer : 2 * layer + 2]
            found[names.dynamics("activation_rms", layer=layer)] = math.sqrt(total / count)
            found[names.dynamics("largest_attention_logit", layer=layer)] = largest
        found[names.DYNAMICS_OUTPUT_ENTROPY] = entropy[0] / entropy[1]
        return found

    def _residual_hook(self, layer: int) -> Callable[..., None]:
        # Without sequence parallelism every tensor-parallel rank holds the same hidden states.
        speaks = self._chunks[0].config.sequence_parallel or parallel_state.get_tensor_model_parallel_rank() == 0

        @torch.no_grad()
        def hook(_: Any, __: Any, output: tuple[torch.Tensor, Any]) -> None:
            if speaks:
                self._residual[layer, 0] += _sum_of_squares(output[0].detach())
                self._residual[layer, 1] += output[0].numel()

        return hook

    def _logit_hook(self, layer: int) -> Callable[..., None]:
        def hook(core: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            query, key, mask = inputs[0].detach(), inputs[1].detach(), inputs[3]
            largest = core.largest_logit(query, key, mask)
            self._largest_logit[layer] = torch.maximum(self._largest_logit[layer], largest)

        return hook

    @torch.no_grad()
    def _entropy_hook(self, _: Any, __: Any, output: tuple[torch.Tensor, Any]) -> None:
        entropy_SB = token_entropy(output[0].detach(), vocab_size=self._spec.vocab_size)
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            self._entropy[0] += entropy_SB.sum(dtype=torch.float64)
            self._entropy[1] += entropy_SB.numel()


@torch.no_grad()
def token_entropy(logits_SBV: torch.Tensor, *, vocab_size: int) -> torch.Tensor:
    """Entropy of each next-token distribution; every rank of a tensor-parallel group calls it.

    With t the largest logit, Z = Σ exp(z - t): H = -Σ p log p = log Z - Σ (z - t) exp(z - t) / Z.

    Args:
        logits_SBV: [S, B, V / tensor parallel], this rank's part of the padded vocabulary.
        vocab_size: true vocabulary; later columns have no probability.

    Returns:
        fp32 [S, B], nats.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    length, batch, width = logits_SBV.shape
    real = max(0, min(width, vocab_size - group.rank() * width))
    logits = logits_SBV[..., :real].reshape(length * batch, real)
    top = torch.full((length * batch,), -torch.inf, device=logits.device)
    if real:
        top = logits.amax(-1).float()
    sums = torch.zeros(2, length * batch, device=logits.device)
    if group.size() > 1:
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
    for start in range(0, length * batch, _ENTROPY_CHUNK):
        rows = slice(start, start + _ENTROPY_CHUNK)
        shifted = logits[rows].float() - top[rows, None]
        weight = shifted.exp()
        sums[0, rows] = weight.sum(-1)
        sums[1, rows] = weight.mul_(shifted).sum(-1)
    if group.size() > 1:
        dist.all_reduce(sums, group=group)
    return (sums[0].log() - sums[1] / sums[0]).view(length, batch)


def _parts(spec: ModelSpec) -> list[Part]:
    """Every part of the whole model, the same list on every rank."""
    groups = dict.fromkeys(_OF_LAYER.values())
    parts: list[Part] = [(layer, group) for layer in range(spec.num_layers) for group in groups]
    return parts + [(None, group) for key, group in _OUTSIDE.items() if not (spec.tie_embeddings and key == OUTPUT)]


def _part(key: str) -> Part:
    """The part that a tensor of a checkpoint belongs to."""
    match = _LAYER_KEY.fullmatch(canonical_key(key))
    return (int(match[1]), _OF_LAYER[match[2]]) if match else (None, _OUTSIDE[key])


def _real_elements(chunk: Chunk, vocab_size: int) -> int:
    """Leading elements of a chunk that are not in padding rows of the vocabulary."""
    block = chunk.block
    if block.key not in (EMBEDDING, OUTPUT):
        return chunk.numel
    rows = max(0, vocab_size - block.offset[0])
    return max(0, min(chunk.numel, rows * math.prod(block.shape[1:]) - chunk.start))


def _sum_of_squares(tensor: torch.Tensor) -> torch.Tensor:
    """fp64 scalar."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).square()
