"""Scoring as on a GPU, prefix and blocks attended to apart, on a CPU: against Hugging Face's model and dense masks."""

from __future__ import annotations

import numpy as np

from tests.parity.test_layouts import huggingface_model
from tests.parity.test_scoring_repeats import rows
from tests.parity.workers import Layout
from tests.support.hf_scorer import HuggingFaceScorer
from tests.support.ranks import run_ranks


def test_prefix_and_blocks_apart_score_like_hugging_face():
    payload = {"layouts": [Layout("apart")], "apart": True, "watch": False}
    ((result,),) = run_ranks("tests.parity.scoring_workers:score", 1, payload)
    packed = rows()
    expected = HuggingFaceScorer(huggingface_model(result["spec"], result["weights"]).eval()).score(packed)
    # fp32 in another order; log-probabilities around -5.
    np.testing.assert_allclose(result["answers"].log_prob_P, expected.log_prob_P, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(result["answers"].is_greedy_P, expected.is_greedy_P)
