"""Forward passes at ZeRO stage 3, where no rank holds a whole weight: piece by piece, gathered and given back.

In training DeepSpeed's hooks gather the weights of each module as it is reached, and fetch ahead along the order that
training takes. Scoring cannot leave it to them: every gather is a collective, and data-parallel ranks have different
numbers of rows. Here the hooks are away; the model is taken apart into pieces (embedding, each layer, the end), every
rank gathers the same pieces in the same order, and all rows of a turn pass through a piece while it is whole. A rank
that fails, or has no row, goes on gathering. DeepSpeed's own record of what is where is not touched.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

from pretrain.engine.base import PackedRow
from pretrain.engine.sharded import score
from pretrain.engine.sharded.head import Head
from pretrain.engine.sharded.in_step import InStep
from pretrain.engine.sharded.staged import StagedRow

_ROWS_AT_ONCE = 16
"""Rows whose hidden states are held between pieces: 1 GB for rows of 8,192 tokens, width 4,096, in bf16."""


@contextlib.contextmanager
def gathered(parameters: Iterable[Any]) -> Iterator[None]:
    """Whole weights while it is entered; every data-parallel rank enters it for the same parameters."""
    absent = [p for p in parameters if p.ds_status is ZeroParamStatus.NOT_AVAILABLE]
    with GatheredParameters(absent):
        yield


@contextlib.contextmanager
def without_hooks(model: torch.nn.Module) -> Iterator[None]:
    """No forward hook of DeepSpeed's runs while it is entered: none gathers, fetches ahead or releases."""
    kept = [(module, module._forward_pre_hooks, module._forward_hooks) for module in model.modules()]
    try:
        for module, _, _ in kept:
            module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, before, after in kept:
            module._forward_pre_hooks, module._forward_hooks = before, after


class Piece:
    """A part of the model that is whole at one time, with the interface of a model chunk.

    Args:
        model: the GPTModel.
        layers: the transformer layers of the piece.
        pre_process: it begins with the embedding.
        post_process: it ends with the last norm and the output layer.
    """

    def __init__(
        self, model: Any, layers: Sequence[Any] = (), *, pre_process: bool = False, post_process: bool = False
    ) -> None:
        self.config, self.pre_process, self.post_process = model.config, pre_process, post_process
        self.embedding = model.embedding
        self.decoder = _Layers(layers, model.decoder.final_layernorm if post_process else None)
        self._parts = [*layers, *([model.embedding] if pre_process else [])]
        if post_process:
            self.output_layer = model.output_layer
            self.shared_embedding_or_output_weight = model.shared_embedding_or_output_weight
            tied = model.share_embeddings_and_output_weights
            self._parts += [model.decoder.final_layernorm, model.embedding if tied else model.output_layer]

    def parameters(self) -> Iterator[Any]:
        """What must be whole while rows pass through."""
        return (parameter for part in self._parts for parameter in part.parameters())

    def set_input_tensor(self, hidden: torch.Tensor | None) -> None:
        """Hidden states of the piece before."""
        self.decoder.received = hidden


class _Layers:
    """Some layers in the place of a whole TransformerBlock."""

    def __init__(self, layers: Sequence[Any], final_norm: Any) -> None:
        self.layers, self._final_norm = layers, final_norm
        self.received: torch.Tensor | None = None

    def __call__(self, *, hidden_states: torch.Tensor | None, attention_mask: Any, rotary_pos_emb: Any) -> torch.Tensor:
        hidden: Any = self.received if hidden_states is None else hidden_states
        self.received = None
        for layer in self.layers:
            hidden, _ = layer(hidden_states=hidden, attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb)
        return hidden if self._final_norm is None else self._final_norm(hidden)


def run_pieces(
    chunks: Sequence[Any],
    rows: Sequence[PackedRow],
    rope_table: torch.Tensor,
    head: Head,
    in_step: InStep,
    *,
    most_rows: int,
) -> None:
    """Takes this replica's rows through the model, in place of `score.run_ring`. Every rank calls it.

    Args:
        chunks: the GPTModel alone, in evaluation mode and without hooks.
        rows: this replica's.
        rope_table: rotary embeddings of every position.
        head: what the last piece adds to.
        in_step: keeps a failed rank in step.
        most_rows: the most that any replica has; the same on every rank.
    """
    (model,) = chunks
    pieces = [
        Piece(model, pre_process=True),
        *(Piece(model, [layer]) for layer in model.decoder.layers),
        Piece(model, post_process=True),
    ]
    for first in range(0, most_rows, _ROWS_AT_ONCE):
        turn = rows[first : first + _ROWS_AT_ONCE]
        staged: dict[int, StagedRow] = {}
        hidden: dict[int, torch.Tensor] = {}
        for piece in pieces:
            with gathered(piece.parameters()):
                for index, row in enumerate(turn):
                    work = functools.partial(
                        score.run_chunk, piece, index, row, staged, rope_table, hidden.get(index), head
                    )
                    hidden[index] = in_step.run(piece, row, work)
