"""Cost of scoring: against sums made by hand, and against a compiled plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.plan.probing import probe_plan
from probes.items import StoredSuite
from probes.plan import PlanSettings, compile_plan
from probes.request import Request, SuiteRequests, TaskFacts
from tests.unit.plan.cases import small

STEPS = ("train.steps=100", "checkpoint.early=[0]", "checkpoint.every=10 steps", "checkpoint.per_decade=null")


def test_tokens_of_known_tasks_are_spread_over_the_saves() -> None:
    config = small((*STEPS, "probe.suite=openllama", "train.global_batch_size=1000"))
    plan = probe_plan(config, tokens_per_second=1000.0)
    known = 64_000 + 107_000 + 457_000 + 1_736_000 + 14_000 + 109_000 + 22_000 + 57_000
    assert plan.source == "published"
    assert plan.tokens_full == pytest.approx(1.1 * known)
    assert plan.unknown == ("anli_r1", "anli_r2", "anli_r3", "record", "truthfulqa_mc1", "truthfulqa_mc2", "wic")
    assert plan.full_saves == 11
    assert plan.seconds_per_pass == pytest.approx(1.1 * known / 3000)
    # Forward costs a third of forward and backward.
    assert plan.share == pytest.approx(11 * 1.1 * known / 3 / (100 * 1000 * 32))


def test_examples_in_prompts_count_for_every_item_but_mmlus_once() -> None:
    plan = probe_plan(small((*STEPS, "probe.suite=amber")), tokens_per_second=1000.0)
    arc, hellaswag, mmlu = 64_000 + 1_172 * 25 * 37, 1_736_000 + 10_042 * 10 * 82, 1_780_000
    assert plan.tokens_full == pytest.approx(1.1 * (arc + hellaswag + mmlu))
    assert plan.estimated == ("arc_challenge (25-shot)", "hellaswag (10-shot)")
    assert plan.unknown == ("truthfulqa_mc2",)
    few = probe_plan(small((*STEPS, "probe.suite=amber", "probe.limit=10")), tokens_per_second=1000.0)
    assert few.tokens_full == pytest.approx(11 * (arc / 1_172 + hellaswag / 10_042 + mmlu / 14_042), abs=2)


def test_recomputation_makes_a_pass_a_quarter_of_a_step() -> None:
    both = [small((*STEPS, "probe.suite=openllama", f"engine.recompute={name}")) for name in ("none", "full")]
    plain, full = (probe_plan(config, tokens_per_second=1000.0).seconds_per_pass for config in both)
    assert full == pytest.approx(0.75 * plain)


def test_milestones_score_all_there_and_the_fast_tier_at_every_save() -> None:
    config = small((*STEPS, "probe.suite=olmo", "probe.milestones=50 steps"))
    plan = probe_plan(config, tokens_per_second=1000.0)
    assert (plan.full_saves, plan.fast_saves) == (3, 11)  # 0, 50 and 100
    assert 0 < plan.tokens_fast < plan.tokens_full / 5
    assert plan.generates == ()


def test_a_budget_caps_the_share() -> None:
    config = small((*STEPS, "probe.suite=olmo", "probe.budget=2%"))
    plan = probe_plan(config, tokens_per_second=1000.0)
    assert plan.share == plan.budget == 0.02


@pytest.mark.parametrize("mode", ["beside", "off"])
def test_a_run_that_does_not_score_pays_nothing(mode: str) -> None:
    config = small(STEPS)
    config.probe.mode = mode
    plan = probe_plan(config, tokens_per_second=1000.0)
    assert plan.share == 0.0 and plan.source == f"probe.mode={mode}"


def test_a_compiled_plan_says_the_tokens_exactly(tmp_path: Path) -> None:
    requests = [
        Request(0, item, choice, tuple(range(20 * item, 20 * item + 12)), (7, 8 + choice), 3, 3, True, choice == 0)
        for item in range(30)
        for choice in range(4)
    ]
    tasks, stored = [TaskFacts("mine", "any", 0, 30)], StoredSuite("mine", (), None, ())
    captured = SuiteRequests("mine", tasks, requests, [], "digest", stored)
    compiled = compile_plan(captured, NoTokenizer(), PlanSettings(max_length=32, add_bos=False))  # type: ignore[arg-type]
    compiled.save(tmp_path / "plan")
    plan = probe_plan(small((*STEPS, f"probe.plan={tmp_path / 'plan'}")), tokens_per_second=1000.0)
    assert plan.source == "plan" and plan.unknown == ()
    # 30 prompts of 12 tokens; of two tokens each answer's first is shared and its last is only predicted.
    assert 30 * 13 <= plan.tokens_full == sum(len(row.tokens_S) for row in compiled.rows.rows)


class NoTokenizer:
    """Of a tokenizer a plan keeps the fingerprint alone."""

    fingerprint = "none"
