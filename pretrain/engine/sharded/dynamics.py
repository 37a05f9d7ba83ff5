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
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

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
                # Before the forward: DeepSpeed takes the weight away after it.
                handles.append(chunk.output_layer.register_forward_pre_hook(self._loss_hook, with_kwargs=True))
                handles.append(chunk.output_layer.register_forward_hook(self._logits_hook, with_kwargs=True))
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
    def _loss_hook(self, layer: Any, inputs: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        """An output layer that ends in the loss: its logits once more, a chunk at a time."""
        if kwargs.get("labels") is None:
            return
        hidden_SBH, weight_VH = inputs[0].detach(), kwargs.get("weight")
        if layer.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=layer.tp_group)
        weight_VH = layer.weight if weight_VH is None else weight_VH
        real_VH = weight_VH[: self._num_real(len(weight_VH))]
        self._add_entropy(F.linear(hidden_CH, real_VH) for hidden_CH in hidden_SBH.flatten(0, 1).split(_ENTROPY_CHUNK))

    @torch.no_grad()
    def _logits_hook(self, _: Any, __: Any, kwargs: dict[str, Any], output: tuple[torch.Tensor, Any]) -> None:
        """An output layer that ends in logits."""
        if kwargs.get("labels") is None:
            logits_TV = output[0].detach().flatten(0, 1)
            self._add_entropy(logits_TV[:, : self._num_real(logits_TV.shape[1])].split(_ENTROPY_CHUNK))

    def _num_real(self, part: int) -> int:
        """Rows of this rank's part of the padded vocabulary that are not padding."""
        return max(0, min(part, self._spec.vocab_size - parallel_state.get_tensor_model_parallel_rank() * part))

    def _add_entropy(self, chunks: Iterable[torch.Tensor]) -> None:
        entropy_T = token_entropy(chunks, group=parallel_state.get_tensor_model_parallel_group())
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            self._entropy[0] += entropy_T.sum(dtype=torch.float64)
            self._entropy[1] += entropy_T.numel()


@torch.no_grad()
def token_entropy(chunks: Iterable[torch.Tensor], *, group: dist.ProcessGroup) -> torch.Tensor:
    """Entropy of each next-token distribution; every rank of a tensor-parallel group calls it.

    With t the largest logit, Z = Σ exp(z - t): H = -Σ p log p = log Z - Σ (z - t) exp(z - t) / Z. A rank takes its own
    largest logit u for t; then both sums are brought to the largest of all: z - t = (z - u) + (u - t).

    Args:
        chunks: logits of some tokens each, [C, V], of this rank's rows of the vocabulary that are not padding.
        group: the tensor-parallel group.

    Returns:
        fp32, nats, one for each token of all chunks.
    """
    own_T, total_T, moment_T = torch.cat([_moments(logits_CV) for logits_CV in chunks], 1)
    top_T = own_T.clone()
    if group.size() > 1:
        dist.all_reduce(top_T, dist.ReduceOp.MAX, group=group)
    lower_T = own_T - top_T
    sums_2T = torch.stack([total_T, moment_T + lower_T * total_T]) * lower_T.exp()
    if group.size() > 1:
        dist.all_reduce(sums_2T, group=group)
    return sums_2T[0].log() - sums_2T[1] / sums_2T[0]


def _moments(logits_CV: torch.Tensor) -> torch.Tensor:
    """[3, C], fp32: the largest logit u, Σ exp(z - u) and Σ (z - u) exp(z - u)."""
    if not logits_CV.shape[1]:
        lowest = torch.finfo(torch.float32).min  # finite, or 0 · -inf would be next
        return torch.tensor([lowest, 0.0, 0.0], device=logits_CV.device)[:, None].expand(3, len(logits_CV))
    top_C = logits_CV.amax(-1).float()
    shifted = logits_CV.float() - top_C[:, None]
    weight = shifted.exp()
    return torch.stack([top_C, weight.sum(-1), weight.mul_(shifted).sum(-1)])


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
