"""The schedule of sources against exact arithmetic, at its beginning and far from it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import mixture as module
from pretrain.data.mixture import Mixture
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
    drawn = [rng.dirichlet(np.full(n, a)) + 5e-4 for n in (2, 3, 7, 30) for a in (0.1, 1.0, 10.0)]
    return [{f"s{i:02d}": float(w) for i, w in enumerate(weights)} for weights in drawn]


def largest_error(mixture: Mixture, first: int, count: int) -> Fraction:
    """Largest |samples of a source - share · n| over the prefixes n in (first, first + count], exactly.

    Counts before `first` come from `counts_before`, and draws must go on from there.
    """
    source, draw = mixture.draws(first, count)
    before = mixture.counts_before(first).tolist()
    assert sum(before) == first
    worst = Fraction(0)
    for s, name in enumerate(mixture.sources):
        share = mixture.shares[name]
        drawn = np.concatenate(([0], np.cumsum(source == s, dtype=np.int64)))
        assert np.array_equal(draw[source == s], before[s] + np.arange(drawn[-1]))
        # Numerators over the common denominator stay in int64: the distance at `first` is below one sample.
        at_first = before[s] * share.denominator - first * share.numerator
        errors = at_first + drawn * share.denominator - np.arange(count + 1, dtype=np.int64) * share.numerator
        worst = max(worst, Fraction(int(np.abs(errors).max()), share.denominator))
    return worst


@pytest.mark.parametrize(
    "weights", [AMBER, {"a": 1.0}, {"a": 1, "b": 1, "c": 1}, {"a": 6000.0, "b": 1.0}, *random_weights()]
)
def test_every_prefix_is_within_one_sample_of_every_share(weights: dict[str, float]) -> None:
    mixture = Mixture(weights)
    for first in (0, 3 * mixture.block_length, 10**9 // mixture.block_length * mixture.block_length):
        assert largest_error(mixture, first, 20_000) < 1


@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(st.integers(1, 60) | st.floats(0.02, 1.0), min_size=1, max_size=12),
    first_block=st.integers(0, 10**10),
)
def test_blocks_meet_for_any_weights(weights: list[float], first_block: int) -> None:
    # Blocks as short as they may be: many borders, each of which fixes what its neighbours must keep.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHORTEST_BLOCK", 1)
        mixture = Mixture({f"s{i:02d}": weight for i, weight in enumerate(weights)})
    assert largest_error(mixture, first_block * mixture.block_length, 5 * mixture.block_length) < 1


def test_whole_numbers_of_samples_are_met_exactly() -> None:
    quotas = {"a": 14_648_437, "b": 96_518_554, "c": 324_712_402}
    counts = Mixture(quotas).counts_before(sum(quotas.values()))
    assert counts.tolist() == list(quotas.values())


def test_shares_are_the_decimals_as_they_are_written() -> None:
    shares = Mixture({"a": 0.1, "b": 0.7, "c": 52.81}).shares
    assert shares == {name: Fraction(part, 5361) for name, part in (("a", 10), ("b", 70), ("c", 5281))}


def test_weights_of_many_digits_are_met_to_one_sample_in_ten_billion() -> None:
    weights = {name: math.pi ** (i + 1) for i, name in enumerate("abcde")}
    mixture = Mixture(weights)
    counts = mixture.counts_before(10**10)
    for name, count in zip(mixture.sources, counts.tolist(), strict=True):
        assert abs(count - 10**10 * weights[name] / math.fsum(weights.values())) < 1.01


def test_draws_are_the_same_wherever_they_are_asked_from() -> None:
    mixture = Mixture(AMBER)
    length = mixture.block_length
    source, draw = mixture.draws(0, 3 * length)
    for first, count in ((0, 1), (length - 3, 7), (2 * length, 100), (1234, 2 * length), (5, 0)):
        found = Mixture(AMBER).draws(first, count)
        assert np.array_equal(found[0], source[first : first + count])
        assert np.array_equal(found[1], draw[first : first + count])


def test_counts_before_are_the_counted_draws() -> None:
    mixture = Mixture(AMBER)
    source, _ = mixture.draws(0, 2 * mixture.block_length + 1000)
    for count in (0, 1, 999, mixture.block_length, 2 * mixture.block_length + 1000):
        assert mixture.counts_before(count).tolist() == np.bincount(source[:count], minlength=7).tolist()


def test_the_order_in_which_sources_are_listed_and_the_scale_of_weights_do_not_matter() -> None:
    listed = Mixture(AMBER)
    turned = Mixture({name: AMBER[name] * 4 for name in reversed(AMBER)})
    assert listed.sources == turned.sources
    assert np.array_equal(listed.draws(0, 10_000)[0], turned.draws(0, 10_000)[0])


def test_a_weight_of_zero_leaves_a_source_out() -> None:
    assert Mixture({"b": 1.0, "only_validation": 0.0, "a": 1.0}).sources == ("a", "b")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"a": -1.0, "b": 1.0}, r"data\.sources\.a\.weight=-1\.0"),
        ({"a": float("nan")}, "finite"),
        ({"a": 0.0}, "nothing to train on"),
        ({}, "nothing to train on"),
        ({"a": 1.0, "b": 1e-9}, r"data\.sources\.b would give 1\.00e-09.*hardly be drawn"),
    ],
)
def test_weights_that_make_no_mixture_are_named(weights: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Mixture(weights)
