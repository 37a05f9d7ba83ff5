"""A small model of transformers' that stands for the live one: an engine's `score` without an engine."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretrain.config.model import ModelConfig
from pretrain.engine.base import TokenLogProbs
from pretrain.model.spec import ModelSpec

VOCABULARY = 500
LAYERS = 3


def make_spec(**fields):
    sizes = {"hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "num_query_groups": 2}
    return ModelSpec.from_config(ModelConfig(num_layers=LAYERS, **sizes | {"init_std": 0.2} | fields), VOCABULARY)


def make_model(spec):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**spec.config_json(sequence_length=64))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


class Live:
    """A live engine's `score`, done by transformers on the whole row with the row's own mask and positions."""

    def __init__(self, model):
        self.model = model

    def score(self, rows):
        log_probs = np.empty(rows.num_pairs)
        for row in rows.rows:
            at = np.arange(len(row.tokens_S))
            seen = (at[None, :] <= at[:, None]) & (at[:, None] < np.maximum(row.ends_S, at + 1)[None, :])
            with torch.no_grad():
                logits = self.model(
                    torch.from_numpy(row.tokens_S)[None].long(),
                    attention_mask=torch.from_numpy(seen)[None, None],
                    position_ids=torch.from_numpy(row.positions_S)[None].long(),
                ).logits[0]
            found = logits.double().log_softmax(-1).numpy()
            log_probs[row.pair_id_P] = found[row.wanted_W[row.pair_wanted_P], row.pair_target_P]
        return TokenLogProbs(log_probs, np.zeros(rows.num_pairs, bool))
