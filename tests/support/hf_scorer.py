"""A reference scorer: Hugging Face's LlamaForCausalLM run on packed rows with a dense mask.

Slow and obvious: the mask is written from the contract's sentence, key k visible to query q when k <= q < end[k].
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.engine.base import PackedRow, PackedRows, TokenLogProbs


def tiny_llama(vocab_size: int, *, max_length: int = 256, seed: int = 0) -> Any:
    """A random two-layer fp32 LlamaForCausalLM with grouped heads, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        tie_word_embeddings=False,
        initializer_range=0.2,  # far from uniform, so that mistakes show
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def hf_tokenizer(model_file: Path, *, add_bos: bool) -> Any:
    """The tokenizer that an export of this `tokenizer.model` gives to Hugging Face."""
    from transformers import AutoTokenizer

    from pretrain.checkpoint.tokenizer_files import write_tokenizer_files

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(model_file, Path(folder), add_bos=add_bos)
        return AutoTokenizer.from_pretrained(folder)


class HuggingFaceScorer:
    """Implements `pretrain.engine.base.Scorer`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(self, rows: PackedRows) -> TokenLogProbs:
        log_prob_P = np.full(rows.num_pairs, np.nan)
        is_greedy_P = np.zeros(rows.num_pairs, bool)
        with torch.no_grad():
            for row in rows.rows:
                logits_WV = self._logits(row)[torch.from_numpy(row.wanted_W)]
                log_probs_WV = torch.log_softmax(logits_WV.double(), dim=-1)
                wanted, targets = torch.from_numpy(row.pair_wanted_P), torch.from_numpy(row.pair_target_P)
                log_prob_P[row.pair_id_P] = log_probs_WV[wanted, targets].numpy()
                is_greedy_P[row.pair_id_P] = (logits_WV.argmax(-1)[wanted] == targets).numpy()
        return TokenLogProbs(log_prob_P, is_greedy_P)

    def _logits(self, row: PackedRow) -> torch.Tensor:
        length = len(row.tokens_S)
        query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
        visible = (key <= query) & (query < torch.from_numpy(row.ends_S)[None, :])
        visible |= torch.eye(length, dtype=torch.bool)  # padding sees itself: no empty softmax
        dtype = self.model.dtype
        mask = torch.zeros(length, length, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        output = self.model(
            input_ids=torch.from_numpy(row.tokens_S).long()[None],
            position_ids=torch.from_numpy(row.positions_S).long()[None],
            attention_mask=mask[None, None],
            use_cache=False,
        )
        return output.logits[0]
