import numpy as np
import pytest

from probes.dynamics.fit_law import FitRefused
from probes.dynamics.published import pythia
from probes.dynamics.single_run import fit_single_run, stretches
from probes.dynamics.table import Series, make_curve

TOKENS = np.arange(1, 61) * 1e9
TRUE_LOSS = 400 / TOKENS**0.3 + 1.8


def curve(values, *, metric="loss", tokens=TOKENS):
    nothing = np.full(len(tokens), np.nan)
    return make_curve(nothing, tokens, values, nothing, run="run", series=Series("task", metric), domain="x")


def at(tokens):
    return {"tokens": tokens}


def test_the_future_of_a_clean_loss_is_found():
    fit = fit_single_run(curve(TRUE_LOSS), draws=0)
    assert fit.refused is None
    assert fit.parameter("E") == pytest.approx(1.8, rel=1e-3)
    assert fit.parameter("beta") == pytest.approx(0.3, rel=1e-3)
    assert fit.predict(at(3e11)).value == pytest.approx(400 / 3e11**0.3 + 1.8, rel=1e-5)


def test_an_interval_holds_the_future_of_a_noisy_loss():
    noisy = TRUE_LOSS * np.exp(np.random.default_rng(0).normal(0, 0.004, 60))
    found = fit_single_run(curve(noisy), draws=60).predict(at(2e11))
    assert found.low < 400 / 2e11**0.3 + 1.8 < found.high
    assert found.high - found.low < 0.3


def test_of_a_score_the_error_is_fitted():
    score = 1 - (200 / TOKENS**0.3 + 0.2)
    found = fit_single_run(curve(score, metric="acc"), draws=30).predict(at(2e11))
    assert found.value == pytest.approx(1 - (200 / 2e11**0.3 + 0.2), rel=1e-4)
    assert found.low <= found.value <= found.high


def test_the_beginning_is_left_out():
    early = TRUE_LOSS.copy()
    early[:5] += 3.0
    assert fit_single_run(curve(early), draws=0).parameter("beta") == pytest.approx(0.3, rel=1e-3)


def test_ten_times_the_tokens_is_as_far_as_it_goes():
    fit = fit_single_run(curve(TRUE_LOSS), draws=0)
    fit.predict(at(6e11))
    with pytest.raises(FitRefused, match="more than 10 times outside"):
        fit.predict(at(7e11))


def test_a_curve_that_bends_down_has_no_floor_and_is_refused():
    bent = TRUE_LOSS - 0.4 * np.clip(TOKENS / 6e10 - 0.4, 0, None) ** 2
    assert "E is at its bound" in fit_single_run(curve(bent), draws=0).refused


def test_four_checkpoints_are_too_few():
    assert "points for 3 parameters" in fit_single_run(curve(TRUE_LOSS[:4], tokens=TOKENS[:4]), draws=0).refused


def test_pythia_s_lambada_is_carried_from_half_way_to_the_end():
    table = pythia(deduped=False, num_fewshot=0)
    whole = table.get("pythia-6.9b", Series("lambada_openai", "acc", 0)).since_step(512)
    half = whole.until(whole.tokens_C[-1] / 2)
    found = fit_single_run(half, draws=60).predict(at(whole.tokens_C[-1]))
    assert abs(found.value - whole.value_C[-1]) < abs(half.value_C[-1] - whole.value_C[-1])
    assert found.low < whole.value_C[-1] < found.high


def test_stretches_are_ten_of_about_equal_length():
    assert (np.bincount(stretches(60)) == 6).all()
    np.testing.assert_array_equal(stretches(4), [0, 2, 5, 7])
