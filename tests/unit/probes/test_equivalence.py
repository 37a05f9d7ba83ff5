"""The packed plan gives what lm-eval's HFLM gives on the same model.

In float64: HFLM adds up log-probabilities in the model's type, and in fp32 sums of -100 are 1e-5 apart by that alone.
"""

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from probes.harness import load_harness
from probes.plan import PlanSettings, compile_plan
from probes.score import gather_answers
from probes.suite import Suite
from tests.support.hf_scorer import HuggingFaceScorer
from tests.unit.probes.test_harness import hflm


@pytest.mark.parametrize(("add_bos", "max_length"), [(False, 256), (True, 256), (True, 24)])
def test_log_likelihoods_of_packed_rows_equal_those_of_hflm(
    add_bos: bool, max_length: int, task_folder: Path, suite: Suite, tokenizer: Tokenizer
):
    model = hflm(Path(tokenizer.name), add_bos=add_bos, vocab_size=tokenizer.vocab_size, max_length=max_length)
    model.model.double()
    harness = load_harness(suite, task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=add_bos, max_length=max_length)
    settings = PlanSettings(max_length=max_length, add_bos=add_bos, tokens_per_row=1024)
    plan = compile_plan(captured, tokenizer, settings)
    answers = gather_answers(plan, HuggingFaceScorer(model.model).score(plan.rows))
    instances = [instance for task in harness.tasks for instance in task.task.instances]
    expected = model.loglikelihood(instances, disable_tqdm=True)
    assert plan.stats["cut_requests"] > 0 if max_length == 24 else plan.stats["cut_requests"] == 0
    # Hugging Face's RMSNorm and rotary tables stay in fp32: differences of 1e-16 may flip a rounding there
    np.testing.assert_allclose(answers.log_likelihood_R, [value for value, _ in expected], rtol=0, atol=1e-5)
    assert answers.is_greedy_R.tolist() == [greedy for _, greedy in expected]
