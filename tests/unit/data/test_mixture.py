"""The schedule of sources against exact arithmetic over its whole period."""

from __future__ import annotations

import numpy as np
import pytest

from pretrain.data.mixture import PERIOD, Mixture, schedule
from pretrain.errors import ConfigError

AMBER = {
    "arxiv": 30.0,
    "books": 28.86,
    "c4": 197.67,
    "refined_web": 665.01,
    "starcoder": 291.92,
    "stackexchange": 21.75,
    "wikipedia": 23.90,
}


def random_weights() -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    drawn = [rng.dirichlet(np.full(n, a)) + 2e-5 for n in (2, 3, 7, 30) for a in (0.1, 1.0, 10.0)]
    return [{f"s{i:02d}": float(w) for i, w in enumerate(weights)} for weights in drawn]


def largest_error_numerator(counts: np.ndarray, chosen: np.ndarray) -> int:
    """Largest |N_s(t) · Q - c_s · t| over all prefixes t and sources s, in integers."""
    total = int(counts.sum())
    prefixes = np.arange(total + 1, dtype=np.int64)
    worst = 0
    for source, count in enumerate(counts):
        drawn = np.concatenate(([0], np.cumsum(chosen == source, dtype=np.int64)))
        worst = max(worst, int(np.abs(drawn * total - int(count) * prefixes).max()))
    return worst


@pytest.mark.parametrize(
    "weights", [AMBER, {"a": 1.0}, {"a": 1, "b": 1, "c": 1}, {"a": 60_000.0, "b": 1.0}, *random_weights()]
)
def test_every_prefix_of_the_period_is_within_one_sample_of_every_share(weights: dict[str, float]) -> None:
    mixture = Mixture(weights)
    source, draw = mixture.draws(0, PERIOD)
    assert np.bincount(source).tolist() == mixture.counts.tolist()
    assert largest_error_numerator(mixture.counts, source) < PERIOD
    for s, count in enumerate(mixture.counts):
        assert np.array_equal(draw[source == s], np.arange(count))


def test_small_periods_are_exact_for_all_pairs_of_counts() -> None:
    for a in range(1, 14):
        for b in range(1, 14):
            for c in range(1, 8):
                counts = np.array([a, b, c])
                chosen = schedule(counts)
                assert np.bincount(chosen, minlength=3).tolist() == [a, b, c]
                assert largest_error_numerator(counts, chosen) < a + b + c


@pytest.mark.parametrize("weights", [AMBER, *random_weights()])
def test_effective_shares_are_the_weights_rounded_to_the_period(weights: dict[str, float]) -> None:
    total = sum(weights.values())
    shares = Mixture(weights).shares
    assert sum(shares.values()) == 1.0
    for name, weight in weights.items():
        assert abs(shares[name] - weight / total) < 1 / PERIOD


def test_draws_are_the_same_wherever_they_are_asked_from() -> None:
    mixture = Mixture(AMBER)
    source, draw = mixture.draws(0, 3 * PERIOD)
    for first, count in ((0, 1), (PERIOD - 3, 7), (2 * PERIOD, 100), (12_345, 70_000)):
        found = mixture.draws(first, count)
        assert np.array_equal(found[0], source[first : first + count])
        assert np.array_equal(found[1], draw[first : first + count])
    far = mixture.draws(10**12 * PERIOD + 5, 1)
    assert far[0][0] == source[5]
    assert far[1][0] == draw[5] + 10**12 * int(mixture.counts[source[5]])


def test_counts_before_are_the_counted_draws() -> None:
    mixture = Mixture(AMBER)
    source, _ = mixture.draws(0, 2 * PERIOD + 1000)
    for count in (0, 1, 999, PERIOD, 2 * PERIOD + 1000):
        assert mixture.counts_before(count).tolist() == np.bincount(source[:count], minlength=7).tolist()


def test_the_order_in_which_sources_are_listed_and_the_scale_of_weights_do_not_matter() -> None:
    listed = Mixture(AMBER)
    turned = Mixture({name: AMBER[name] * 4 for name in reversed(AMBER)})
    assert listed.sources == turned.sources
    assert np.array_equal(listed.draws(0, PERIOD)[0], turned.draws(0, PERIOD)[0])


def test_a_weight_of_zero_leaves_a_source_out() -> None:
    assert Mixture({"b": 1.0, "only_validation": 0.0, "a": 1.0}).sources == ("a", "b")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"a": -1.0, "b": 1.0}, r"data\.sources\.a\.weight=-1\.0"),
        ({"a": float("nan")}, "finite"),
        ({"a": 0.0}, "nothing to train on"),
        ({}, "nothing to train on"),
        ({"a": 1.0, "b": 1e-9}, r"data\.sources\.b\.weight=1e-09.*never be drawn"),
    ],
)
def test_weights_that_make_no_mixture_are_named(weights: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Mixture(weights)
