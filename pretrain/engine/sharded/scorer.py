"""The model alone, for scoring weights that lie on disk: no gradients, no optimizer, no data-parallel wrapper.

Chunks and scoring are those of the live engine, so that the same layout gives the same bits. For that weights keep
`requires_grad`, though no gradient is ever made: Megatron's tensor-parallel Linears multiply frozen weights on
another path, which differs in the last bits (6e-7 in a log-probability under TP2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pretrain.checkpoint.source import TensorSource
from pretrain.config.run import RunConfig
from pretrain.engine.agree import failing_together
from pretrain.engine.base import GenerationRequest, PackedRows, TokenLogProbs
from pretrain.engine.kernels import choose
from pretrain.engine.sharded import groups
from pretrain.engine.sharded.blocks import blocks_of, fill_weights
from pretrain.engine.sharded.generate import generate_ids
from pretrain.engine.sharded.score import evaluation, score_rows
from pretrain.model.gpt import build_chunks, transformer_config
from pretrain.model.spec import ModelSpec


class ModelScorer:
    """Implements `pretrain.engine.base.CheckpointScorer`. Every rank builds one.

    Args:
        config: layout and precision; see `pretrain.engine.build.build_scorer`.
        spec: the model's derived sizes.
        device: where this rank computes.
    """

    def __init__(self, config: RunConfig, spec: ModelSpec, device: torch.device) -> None:
        self._spec = spec
        groups.start(config)
        megatron = transformer_config(config, spec, choose(config, device))
        self._chunks = build_chunks(config, spec, megatron)
        for chunk in self._chunks:
            if megatron.bf16:
                chunk.bfloat16()  # as Megatron's Float16Module does in training
        self._blocks = blocks_of(self._chunks)

    def load(self, source: TensorSource) -> None:
        """Replaces all weights in place; reads this rank's part of them only."""
        fill_weights(self._blocks, source)

    @failing_together()
    def score(self, rows: PackedRows) -> TokenLogProbs:
        """Forward only, with the weights loaded last."""
        with evaluation(self._chunks, []):
            return score_rows(self._chunks, rows, vocab_size=self._spec.vocab_size)

    @failing_together()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Greedy continuations, with the weights loaded last."""
        with evaluation(self._chunks, []):
            return generate_ids(self._chunks, requests, vocab_size=self._spec.vocab_size)

    def close(self) -> None:
        """Takes the process groups down."""
        groups.stop()
