import time

import numpy as np
import pytest
from scipy import stats

from probes.dynamics.noise import noise_of
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, Series, make_curve
from probes.dynamics.trust import TrustRule, holm, judge

STEPS = np.array([0, 512, 1000, 3000, *range(13000, 144000, 10000)])
TOKENS = STEPS * 2_097_152.0
EIGHT = {"lambada_openai", "piqa", "winogrande", "arc_easy", "arc_challenge", "sciq", "logiqa", "wsc"}
LARGE = ("410m", "1b", "1.4b", "2.8b", "6.9b", "12b")


def made(values, *, run="run", task="task", metric="acc", chance=0.25, stderr=0.01, domain="knowledge"):
    return make_curve(
        STEPS[-len(values) :].astype(float),
        TOKENS[-len(values) :],
        np.asarray(values, float),
        np.full(len(values), stderr),
        run=run,
        series=Series(task, metric, 0),
        domain=domain,
        chance=chance,
    )


def verdict_of(curve):
    (verdict,) = judge(CurveTable([], [curve]))
    return verdict


def rise(*, low=0.25, high=0.55, seed=0, noise=0.004):
    share = 1 - np.exp(-np.arange(len(STEPS)) / 5)
    return low + (high - low) * share + np.random.default_rng(seed).normal(0, noise, len(STEPS))


@pytest.fixture(scope="module", params=["standard", "deduped"])
def zero_shot(request):
    return pythia(deduped=request.param == "deduped", num_fewshot=0)


def by_size(verdicts):
    return {size: [v for v in verdicts if f"-{size}" in v.run] for size in ("70m", "160m", *LARGE)}


def test_a_clear_rise_above_chance_is_trusted_with_its_numbers():
    curve = made(rise())
    verdict = verdict_of(curve)
    late = curve.since_step(512)
    assert verdict.trusted and not verdict.decays
    assert verdict.num_checkpoints == len(STEPS) - 1
    assert verdict.score == pytest.approx(late.value_C[-3:].mean())
    assert verdict.above_chance == pytest.approx((late.value_C[-3:].mean() - 0.25) / 0.01)
    assert verdict.monotonicity == pytest.approx(stats.spearmanr(late.tokens_C, late.value_C).statistic)
    assert verdict.gain == pytest.approx((late.value_C[-3:].mean() - late.value_C[:3].mean()) / noise_of(late))
    assert verdict.reason.startswith("29 standard errors above chance; rises with time")


def test_scores_at_chance_are_not_trusted_and_the_reason_says_what_lacks():
    verdict = verdict_of(made(0.25 + np.random.default_rng(1).normal(0, 0.004, len(STEPS))))
    assert not verdict.trusted and not verdict.decays
    assert "standard errors above chance, 3 needed" in verdict.reason
    assert "times its noise, 5 needed" in verdict.reason


def test_a_fall_from_the_best_is_decay_and_no_longer_trusted():
    values = rise()
    values[-3:] -= 0.05
    verdict = verdict_of(made(values))
    assert verdict.decays and not verdict.trusted
    assert "decays: 0.0" in verdict.reason


def test_what_was_never_above_chance_cannot_decay():
    values = np.r_[np.full(9, 0.27), np.full(len(STEPS) - 9, 0.25)]
    values += np.random.default_rng(2).normal(0, 0.001, len(STEPS))
    assert not verdict_of(made(values, stderr=0.02)).decays


def test_bits_per_byte_are_judged_without_chance_and_downwards():
    falling = verdict_of(made(2.0 - rise(), metric="gold_bpb", chance=np.nan, stderr=np.nan))
    assert falling.trusted and np.isnan(falling.above_chance) and np.isnan(falling.p_value)
    assert not verdict_of(made(1.0 + rise(), metric="gold_bpb", chance=np.nan, stderr=np.nan)).trusted


def test_without_a_standard_error_above_chance_is_judged_by_what_the_noise_allows():
    verdict = verdict_of(made(rise(), stderr=np.nan))
    assert verdict.above_chance == pytest.approx((verdict.score - 0.25) / (verdict.noise / 0.35))


def test_too_early_is_said_so():
    verdict = verdict_of(made(rise()[-4:]))
    assert not verdict.trusted
    assert verdict.reason == "4 checkpoints after the very first ones, 5 needed"


def test_measures_of_bias_and_learning_rates_are_not_judged_but_losses_are():
    curves = [
        made(rise(), task="crows_pairs", metric="pct_stereotype", domain="bias"),
        made(rise(), task="schedule", metric="learning_rate", domain=LOSS_DOMAIN),
        made(4.0 - rise(), task="train", metric="loss", domain=LOSS_DOMAIN, chance=np.nan),
    ]
    assert [verdict.series.task for verdict in judge(CurveTable([], curves))] == ["train"]


def test_holms_correction_is_the_textbook_one():
    # Holm (1979): 0.01·4, 0.02·3, 0.03·2, 0.04·1, made monotone.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, np.nan, 0.03, 0.02])), [0.06, 0.04, np.nan, 0.06, 0.06])


def test_holms_correction_holds_the_familywise_error_on_simulated_guessing():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2000, 65))
    luck = np.mean([np.nanmin(holm(row)) <= 0.05 for row in stats.norm.sf(z)])
    assert 0.035 < luck < 0.065


def test_hundreds_of_curves_of_guessing_give_no_trusted_one():
    # Items of one task are the same at all checkpoints: a lasting offset of one standard error, and noise about it.
    rng = np.random.default_rng(4)
    curves = []
    for run in range(8):
        for task in range(57):
            drift = np.cumsum(rng.normal(0, 0.006, len(STEPS)))
            values = 0.25 + rng.normal(0, 0.03) + drift + rng.normal(0, 0.012, len(STEPS))
            curves.append(made(values, run=f"run-{run}", task=f"mmlu_{task}", stderr=0.03))
    table = CurveTable([], curves)
    uncorrected = judge(table, rule=TrustRule(significance=1.0))
    corrected = judge(table)
    assert sum(verdict.trusted for verdict in corrected) <= 1 <= sum(verdict.trusted for verdict in uncorrected)


def test_four_tasks_are_trusted_from_410m_on_and_two_never(zero_shot):
    verdicts = by_size(judge(zero_shot))
    for size in LARGE:
        trusted = {v.series.task for v in verdicts[size] if v.trusted and v.series.metric == "acc"}
        assert {"lambada_openai", "arc_easy", "piqa", "sciq"} <= trusted
    assert not any(v.trusted for v in judge(zero_shot) if v.series.task in ("wsc", "logiqa"))


def test_no_decay_from_410m_on_at_any_checkpoint_and_decay_of_the_small_ones_by_step_123000(zero_shot):
    eight = zero_shot.select(keep=lambda curve: curve.task in EIGHT and curve.metric in ("acc", "acc_norm"))
    seen = {size: set() for size in ("70m", "160m", *LARGE)}
    for step in range(33_000, 144_000, 10_000):
        looked = CurveTable(eight.runs.values(), [curve.until(step * 2_097_152) for curve in eight])
        verdicts = by_size(judge(looked))
        for size, tasks in seen.items():
            found = {one.series.task for one in verdicts[size] if one.decays}
            assert size in ("70m", "160m") or not found, (size, step, found)
            if step <= 123_000:
                tasks |= found
    assert len(seen["70m"]) >= 2 and len(seen["160m"]) >= 2


def test_few_subjects_of_mmlu_pass_and_none_below_two_billion_parameters(zero_shot):
    subjects = [v for v in judge(zero_shot) if v.series.task.startswith("hendrycksTest") and v.series.metric == "acc"]
    assert len(subjects) == 456
    trusted = [v for v in subjects if v.trusted]
    assert len(trusted) <= 2
    assert all(v.parameters > 2e9 for v in trusted)


def test_the_ladders_curves_without_standard_errors_are_judged():
    verdicts = judge(olmo_ladder(), runs=["1B-10xC"])
    trusted = {(v.series.task, v.series.metric) for v in verdicts if v.trusted}
    assert ("hellaswag_val_rc_5shot", "bpb") in trusted and ("hellaswag_val_rc_5shot", "len_norm") in trusted
    assert ("boolq_val_rc_5shot", "acc") not in trusted


def test_runs_are_judged_by_size_and_facts_are_taken_along():
    facts = [RunFacts(name="b", parameters=2e9), RunFacts(name="a", parameters=1e9)]
    verdicts = judge(CurveTable(facts, [made(rise(), run="b"), made(rise(), run="a")]))
    assert [(v.run, v.parameters, v.step) for v in verdicts] == [("a", 1e9, 143_000), ("b", 2e9, 143_000)]


@pytest.mark.slow
def test_twenty_thousand_curves_of_150_checkpoints_are_judged_in_five_seconds():
    rng = np.random.default_rng(5)
    steps = np.arange(1, 151) * 1000.0
    curves = [
        make_curve(
            steps,
            steps * 1e6,
            0.25 + rng.normal(0, 0.01, 150),
            np.full(150, 0.02),
            run=f"run-{run}",
            series=Series(f"task-{task}", "acc"),
            domain="knowledge",
            chance=0.25,
        )
        for run in range(200)
        for task in range(100)
    ]
    table = CurveTable([], curves)
    start = time.process_time()
    assert len(judge(table)) == 20_000
    assert time.process_time() - start < 5.0
