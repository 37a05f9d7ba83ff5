from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.onset import AT, BEFORE, NEVER, NOT_YET, arise, domain_curve
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve

TOKENS = np.geomspace(1e7, 3e11, 40)


def hinge(onset, end, *, low=0.25, high=0.65, tokens=TOKENS):
    share = np.clip(np.log(tokens / onset) / np.log(end / onset), 0.0, 1.0)
    return low + (high - low) * share


def made(values, *, task="task", tokens=TOKENS, chance=0.25, stderr=0.01, domain="knowledge", metric="acc"):
    return make_curve(
        np.arange(len(values), dtype=float),
        np.asarray(tokens, float),
        np.asarray(values, float),
        np.full(len(values), stderr),
        run="run",
        series=Series(task, metric),
        domain=domain,
        chance=chance,
    )


def arising(curve, *, total_tokens=None, **options):
    return arise(CurveTable([RunFacts(name="run", total_tokens=total_tokens)], [curve]), curve, **options)


def test_onset_and_saturation_of_a_clean_curve_are_found_to_a_gap_between_checkpoints():
    found = arising(made(hinge(1e9, 3e10)))
    gap = TOKENS[1] / TOKENS[0]
    assert found.onset.state == found.saturation.state == AT
    assert 1 / gap < found.onset.tokens / 1e9 < gap
    assert 1 / gap < found.saturation.tokens / 3e10 < gap
    assert found.slope == pytest.approx(0.4 / np.log(30), rel=0.1)
    assert abs(found.late_slope) < 0.01


def test_intervals_hold_the_true_onset_and_saturation_about_80_percent_of_the_time():
    rng = np.random.default_rng(0)
    held = []
    for seed in range(60):
        onset, end = np.exp(rng.uniform(np.log(3e8), np.log(3e9))), np.exp(rng.uniform(np.log(2e10), np.log(6e10)))
        curve = made(hinge(onset, end) + rng.normal(0, 0.012, 40))
        found = arising(curve, draws=100, seed=seed)
        held.append(found.onset.low <= onset <= found.onset.high)
        held.append(found.saturation.low <= end <= found.saturation.high)
    # Wider than noise alone asks for: no change point counts as known better than to a gap.
    assert 0.75 <= np.mean(held) <= 0.97


def test_guessing_has_no_onset_and_says_whether_there_is_hope():
    curve = made(0.25 + np.random.default_rng(1).normal(0, 0.01, 40))
    assert arising(curve).onset.state == NEVER
    found = arising(curve, total_tokens=1e13)
    assert found.onset.state == found.saturation.state == NOT_YET
    assert found.reason
    assert np.isinf(found.onset.drawn_B).all()


def test_guessing_is_hardly_ever_given_an_onset():
    rng = np.random.default_rng(2)
    states = [arising(made(0.25 + rng.normal(0, 0.01, 40)), draws=2).onset.state for _ in range(200)]
    assert np.mean([state != NEVER for state in states]) < 0.01


def test_a_rise_from_the_first_checkpoint_began_before_it():
    found = arising(made(0.3 + 0.03 * np.log(TOKENS / TOKENS[0])))
    assert found.onset.state == BEFORE and str(found.onset) == BEFORE
    assert found.saturation.state == NEVER


def test_a_rise_that_goes_on_is_not_saturated_even_if_it_slows_down():
    slow = hinge(1e9, 1e10, high=0.5) + 0.02 * np.maximum(np.log(TOKENS / 1e10), 0)
    assert arising(made(slow), total_tokens=1e13).saturation.state == NOT_YET


def test_scores_below_chance_are_no_rise():
    curve = made(np.linspace(0.15, 0.25, 40) + np.random.default_rng(3).normal(0, 0.002, 40))
    assert arising(curve).onset.state == NEVER
    late = np.where(TOKENS < 1e10, np.linspace(0.15, 0.25, 40), hinge(1e10, 1e12))
    found = arising(made(late))
    assert found.onset.tokens == pytest.approx(1e10, rel=0.5)


def test_a_slow_drift_before_the_rise_is_no_onset():
    drift = 0.25 + 0.002 * np.log(TOKENS / TOKENS[0]) + hinge(1e10, 1e12, low=0.0)
    found = arising(made(drift + np.random.default_rng(4).normal(0, 0.002, 40)))
    assert found.onset.tokens == pytest.approx(1e10, rel=0.6)


def test_a_fall_after_the_best_ends_the_rise():
    values = hinge(1e9, 2e10) - 0.05 * np.maximum(np.log(TOKENS / 2e10), 0)
    found = arising(made(values))
    assert found.saturation.state == AT and found.late_slope < 0
    assert found.saturation.tokens == pytest.approx(2e10, rel=0.35)


def test_bits_per_byte_set_in_when_they_fall():
    found = arising(made(2.0 - hinge(1e9, 3e10), chance=np.nan, stderr=np.nan, metric="gold_bpb"))
    assert found.onset.tokens == pytest.approx(1e9, rel=0.35)


def test_few_checkpoints_have_no_change_point_yet():
    assert "6 needed" in arising(made([0.3, 0.4], tokens=[1e9, 2e9])).reason


def test_the_same_seed_gives_the_same_interval():
    curve = made(hinge(1e9, 3e10) + np.random.default_rng(5).normal(0, 0.01, 40))
    first, second = (arising(curve, seed=7).onset for _ in range(2))
    assert (first.low, first.high) == (second.low, second.high)


def test_pythias_language_arises_early_and_its_exam_subjects_not_at_410m():
    table = pythia(deduped=False, num_fewshot=0)
    step = 2_097_152
    for size in ("410m", "1b-bf16", "1.4b", "2.8b", "6.9b", "12b"):
        run = f"pythia-{size}"
        easy = arise(table, table.get(run, Series("lambada_openai", "acc", 0)))
        assert 256 * step < easy.onset.tokens < 1500 * step
        assert arise(table, table.get(run, Series("logiqa", "acc_norm", 0))).onset.state == NEVER
    hard = arise(table, table.get("pythia-12b", Series("arc_challenge", "acc_norm", 0)))
    assert hard.onset.low > easy.onset.high


def test_a_domains_curve_is_the_mean_above_chance_weighted_by_items():
    large = made(np.full(40, 0.40), task="large", stderr=0.01)
    small = made(np.full(40, 0.80), task="small", stderr=0.03, chance=0.5)
    mean = domain_curve([large, small, made(np.full(40, 0.9), task="other", domain="language")], "knowledge")
    # Rescaled: 0.2 ± 1/75 and 0.6 ± 0.06.
    weights = np.array([75.0**2, (1 / 0.06) ** 2])
    assert mean.value_C[0] == pytest.approx(np.average([0.2, 0.6], weights=weights))
    assert mean.stderr_C[0] == pytest.approx(1 / np.sqrt(weights.sum()))
    assert (mean.task, mean.domain, mean.chance) == ("mean", "knowledge", 0.0)


def test_a_domain_takes_one_metric_a_task_and_common_checkpoints():
    acc = made(np.full(40, 0.4), task="a")
    bpb = made(np.full(40, 1.2), task="a", metric="gold_bpb", chance=np.nan)
    other = made(np.full(20, 0.7), task="b", tokens=TOKENS[::2])
    mean = domain_curve([acc, bpb, other], "knowledge")
    np.testing.assert_allclose(mean.tokens_C, TOKENS[::2])
    assert mean.value_C[0] == pytest.approx((0.2 + 0.6) / 2)
    assert domain_curve([acc], "code") is None


def test_a_domain_of_bits_per_byte_alone_is_their_mean():
    curves = [made(np.full(40, value), task=str(value), metric="bpb", chance=np.nan, stderr=np.nan) for value in (1, 2)]
    mean = domain_curve(curves, "knowledge")
    assert mean.metric == "bpb" and mean.value_C[0] == 1.5 and np.isnan(mean.chance)


def test_an_untrained_model_above_chance_has_learnt_nothing_yet():
    values = 0.06 + hinge(1e9, 3e10, tokens=np.maximum(TOKENS, 1.0)) + np.random.default_rng(6).normal(0, 0.004, 40)
    assert arising(made(values)).onset.state == BEFORE
    assert arising(made(values, tokens=[0.0, *TOKENS[1:]])).onset.state == AT


def test_runs_measured_late_only_began_before():
    table = olmo_ladder()
    found = arise(table, table.get("1B-10xC", Series("hellaswag_val_rc_5shot", "bpb")))
    assert found.onset.state == BEFORE


def test_a_curve_of_an_unknown_run_counts_as_going_on():
    curve = replace(made(0.25 + 1e-3 * (np.arange(40) % 2)), run="elsewhere")
    assert arise(CurveTable([], []), curve).onset.state == NOT_YET
