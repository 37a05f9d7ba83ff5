from __future__ import annotations

import numpy as np
import pytest

from probes.dynamics import metrics
from probes.dynamics.laws import Target
from probes.dynamics.noise import judged_value, unjudged_value
from probes.dynamics.predict import predict_finals, predictable
from probes.dynamics.table import CurveTable, RunFacts, Series, curve_of


def test_losses_and_perplexities_fall() -> None:
    falling = ("gold_bpb", "bpb", "loss", "perplexity", "ppl", "ce_loss", "brier_score", "word_perplexity,none")
    assert all(map(metrics.is_lower_better, falling))
    rising = ("acc", "acc_norm", "len_norm", "correct_prob", "soft_log", "exact_match,strict-match", "mc2", "f1")
    assert not any(map(metrics.is_lower_better, rising))


def test_a_filter_does_not_change_the_family() -> None:
    assert metrics.is_accuracy("exact_match,strict-match") and metrics.is_predicted("exact_match,flexible-extract")
    assert metrics.is_perplexity("byte_perplexity,none") and not metrics.is_accuracy("f1,none")


def test_every_preference_names_each_score_once() -> None:
    for order in (metrics.EARLIEST_FIRST, metrics.PLAINEST_FIRST):
        assert len(order) == len(set(order)) and set(metrics.SCORES) <= set(order)


TEXT_METRICS = {
    "word_perplexity": lambda nats: np.exp(5.3 * nats),
    "byte_perplexity": np.exp,
    "bits_per_byte": lambda nats: nats / np.log(2.0),
}


@pytest.fixture(scope="module")
def texts() -> CurveTable:
    """One loss per byte that falls as a power of tokens, in the three forms in which lm-eval writes it."""
    tokens = np.linspace(2e9, 2e10, 10)
    nats = 0.55 + 0.4 * (tokens / 1e9) ** -0.4
    curves = [
        curve_of(
            [(int(at / 1e6), at, value, np.nan) for at, value in zip(tokens, form(nats), strict=True)],
            run="run",
            series=Series("wikitext", metric, 0),
            domain="loss",
        )
        for metric, form in TEXT_METRICS.items()
    ]
    return CurveTable([RunFacts(name="run", total_tokens=4e10)], curves)


def test_perplexities_of_text_are_predicted_as_the_loss_they_are_made_of(texts) -> None:
    found = {one.series.metric: one for one in predict_finals(texts, "run", series=predictable(texts, "run"))}
    assert set(found) == set(TEXT_METRICS) and not any(one.refused for one in found.values())
    nats = 0.55 + 0.4 * 40.0**-0.4
    bits = found["bits_per_byte"].value
    for metric, form in TEXT_METRICS.items():
        assert found[metric].low < form(nats) < found[metric].high
        # The same numbers in another unit: what is computed with is the logarithm.
        np.testing.assert_allclose(found[metric].value, form(bits * np.log(2.0)), rtol=2e-3)


def test_a_perplexity_is_fitted_through_its_logarithm(texts) -> None:
    for metric in ("word_perplexity", "byte_perplexity"):
        target = Target.of_metric(metric)
        values = texts.get("run", Series("wikitext", metric, 0)).value_C
        np.testing.assert_allclose(target.of(values), np.log(values))
        np.testing.assert_allclose(target.back(target.of(values)), values)
    assert Target.of_metric("bits_per_byte").kind == "value" and Target.of_metric("acc").kind == "error"
    assert np.isnan(Target("log").of(np.array([0.9]))[0])


def test_the_loss_of_prompt_and_answer_is_in_nats_and_no_perplexity() -> None:
    curve = curve_of([(1, 1.0, 2.5, 0.1)], run="run", series=Series("piqa", "ppl_gold"), domain="commonsense")
    assert judged_value(curve)[0] == -2.5 and unjudged_value(curve, judged_value(curve))[0] == 2.5
