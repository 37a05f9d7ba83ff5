"""What the ranks of `test_real_items` run: one plan, scored under one layout after another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.checkpoint.huggingface_source import HuggingFaceSource
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig
from pretrain.engine.job import Job
from pretrain.engine.sharded.scorer import ModelScorer
from pretrain.model.spec import ModelSpec
from probes.plan import Plan

VOCAB = 4000
LENGTH = 1024


def model_config() -> ModelConfig:
    """Four layers, so that two stages of two chunks each have one; grouped heads."""
    return ModelConfig(
        num_layers=4, hidden_size=64, ffn_hidden_size=160, num_attention_heads=4, num_query_groups=2, init_std=0.02
    )


def run_config(parallel: dict[str, Any]) -> RunConfig:
    """In fp32."""
    config = RunConfig()
    config.model = model_config()
    config.train.sequence_length = LENGTH
    config.precision.compute = "fp32"
    for key, value in parallel.items():
        setattr(config.parallel, key, value)
    return config


def score(payload: tuple[list[tuple[str, dict[str, Any]]], Path, Path]) -> dict[str, dict[str, Any]]:
    """By layout: log-probabilities and greedy flags of all pairs (rank 0), and a digest of both (every rank)."""
    layouts, model, plan_folder = payload
    job = Job(timeout_minutes=20)
    plan = Plan.load(plan_folder)
    found = {}
    for name, parallel in layouts:
        config = run_config(parallel)
        spec = ModelSpec.from_config(config.model, VOCAB)
        scorer = ModelScorer(config, spec, job.device)
        scorer.load(HuggingFaceSource(model, spec))
        scored = scorer.score(plan.rows)
        digest = hashlib.sha256(scored.log_prob_P.tobytes() + scored.is_greedy_P.tobytes()).hexdigest()
        found[name] = {"digest": digest}
        if job.rank == 0:
            found[name] |= {"log_prob": np.asarray(scored.log_prob_P), "is_greedy": np.asarray(scored.is_greedy_P)}
        scorer.close()
    job.close()
    return found
