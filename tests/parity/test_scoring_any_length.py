"""Rows of any length can be scored in any layout: what a layout needs for itself, the engine adds as it scores.

A plan and its hash therefore know nothing of layouts, and a plan that was compiled for one serves all others.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.checkpoint.reference import reference_rows
from pretrain.config.run import RunConfig
from pretrain.engine.base import GenerationRequest, PackedRows
from pretrain.model.names import to_huggingface
from pretrain.model.spec import ModelSpec
from probes.pack import Packing, pack
from probes.request import Request
from tests.parity.workers import Layout, assemble, configuration
from tests.support.ranks import run_ranks

VOCAB = 487
LENGTH = 60
PROMPT = (5, 17, 2, 90, 41, 8, 3)


def shared_by(tensor: int) -> RunConfig:
    """A configuration whose heads, widths and vocabulary 3 or 5 ranks can share, as 5 can those of a model of 40 heads.

    16, of which every row of a plan has a multiple of tokens, is divided by neither.
    """
    config = configuration(Layout("sequence parallel", tensor=tensor, sequence=True))
    config.train.sequence_length = LENGTH
    config.model.num_layers, config.model.num_attention_heads, config.model.num_query_groups = 2, 30, 15
    config.model.hidden_size, config.model.ffn_hidden_size, config.model.vocab_multiple = 120, 120, 15
    return config


def spec() -> ModelSpec:
    return ModelSpec.from_config(shared_by(3).model, VOCAB)


def requests() -> list[Request]:
    rnd = random.Random(1)
    shared = [rnd.randrange(VOCAB) for _ in range(70)]
    found = []
    for item in range(12):
        context = [*(shared if item % 2 else []), *(rnd.randrange(VOCAB) for _ in range(rnd.randrange(2, 20)))]
        for choice in range(2):
            continuation = tuple(rnd.randrange(VOCAB) for _ in range(rnd.randrange(1, 5)))
            found.append(Request(0, item, choice, tuple(context), continuation, 1, 1, is_choice=True, is_gold=False))
    return found


def packed() -> Packing:
    """With the product's own padding, which neither 3 nor 5 ranks can split."""
    packing = pack(requests(), max_length=128, tokens_per_row=256)
    lengths = [len(row.tokens_S) for row in packing.rows.rows]
    assert all(any(length % ranks for length in lengths) for ranks in (3, 5))
    return packing


def score(tensor: int) -> dict[str, Any]:
    """What ranks run."""
    from pretrain.engine.build import build_engine, check_capabilities
    from pretrain.engine.job import Job
    from tests.parity.workers import full_weights

    job, config = Job(timeout_minutes=5), shared_by(tensor)
    assert not list(check_capabilities(config, world_size=job.world_size))
    engine = build_engine(config, spec(), job.device)
    found = {
        "weights": full_weights(engine),
        "requests": engine.score(packed().rows),
        "prompts": engine.score(reference_rows(VOCAB)),
        "generated": engine.generate([GenerationRequest(PROMPT, 6), GenerationRequest(PROMPT[:2], 6)]),
    }
    engine.close()
    job.close()
    return found


@pytest.fixture(scope="module", params=[3, pytest.param(5, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks("tests.parity.test_scoring_any_length:score", request.param, request.param)


@pytest.fixture(scope="module")
def plain(ranks: list[dict[str, Any]]) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = spec()
    model = LlamaForCausalLM(LlamaConfig(**sizes.config_json(sequence_length=LENGTH))).eval()
    whole = assemble([part for found in ranks for part in found["weights"]])
    model.load_state_dict({name: t for key, w in whole.items() for name, t in to_huggingface(key, w, sizes)})
    return model


@torch.no_grad()
def log_probs(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """[S, V], of the token after each of these."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def test_rows_are_scored_that_the_ranks_do_not_divide(ranks: list[dict[str, Any]], plain: torch.nn.Module) -> None:
    packing = packed()
    answers = ranks[0]["requests"].log_prob_P
    for number, request in enumerate(requests()):
        at = slice(*packing.span_offsets_R1[number : number + 2])
        given = log_probs(plain, [*request.context, *request.continuation])[len(request.context) - 1 : -1]
        expected = given[np.arange(len(request.continuation)), list(request.continuation)]
        # fp32 sums in another order over the ranks.
        np.testing.assert_allclose(answers[packing.span_pairs[at]], expected, rtol=0, atol=2e-5)


def test_the_prompts_that_every_checkpoint_records_are_answered(
    ranks: list[dict[str, Any]], plain: torch.nn.Module
) -> None:
    rows: PackedRows = reference_rows(VOCAB)
    (row,) = rows.rows
    answers = np.zeros(rows.num_pairs)
    for block in range(row.num_blocks):
        inside = slice(block * row.block_length, (block + 1) * row.block_length)
        given = log_probs(plain, row.tokens_S[inside].tolist())
        pairs = np.flatnonzero((row.pair_wanted_P >= inside.start) & (row.pair_wanted_P < inside.stop))
        answers[row.pair_id_P[pairs]] = given[row.pair_wanted_P[pairs] - inside.start, row.pair_target_P[pairs]]
    np.testing.assert_allclose(ranks[0]["prompts"].log_prob_P, answers, rtol=0, atol=2e-5)


def test_prompts_are_continued_that_the_ranks_do_not_divide(
    ranks: list[dict[str, Any]], plain: torch.nn.Module
) -> None:
    for prompt, new in zip((PROMPT, PROMPT[:2]), ranks[0]["generated"], strict=True):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(log_probs(plain, ids)[-1].argmax()))
        assert new == ids[len(prompt) :]


def test_every_rank_has_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    for found in ranks[1:]:
        np.testing.assert_array_equal(found["requests"].log_prob_P, ranks[0]["requests"].log_prob_P)
        assert found["generated"] == ranks[0]["generated"]
