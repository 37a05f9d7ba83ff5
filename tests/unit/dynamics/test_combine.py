import numpy as np
import pytest

from probes.dynamics.combine import combine, own_weight
from probes.dynamics.surface import Band

SIZES = [4e8, 8e8, 1.5e9, 3e9]


def weight(seen=0.3, parameters=6e9, references=SIZES):
    return own_weight(seen=seen, tokens=1.0, parameters=parameters, references=references)


def band(mean, deviation, noise):
    return Band(np.array([mean]), np.array([deviation]), np.array([[deviation**2 + noise**2]]))


def test_the_own_past_counts_more_near_the_end_and_never_all():
    weights = [weight(seen=share) for share in (0.01, 0.1, 0.3, 0.6, 0.99)]
    assert weights == sorted(weights) and 0 < weights[0] < 0.05 and 0.4 < weights[-1] < 1
    # At a distance of one e-fold half of what it is at the end.
    assert weight(seen=np.exp(-1.0)) == pytest.approx(0.25) and weight(seen=1.0) == pytest.approx(0.5)


def test_the_own_past_counts_more_where_fewer_than_three_references_are_near_in_size():
    few = weight(references=SIZES[2:])
    assert few > 1.5 * weight(references=SIZES)
    assert weight(parameters=1e11) == few, "all are more than ten times smaller"
    assert weight(references=SIZES[1:]) == weight(references=SIZES), "the first one is not near"


def test_both_are_weighed_and_their_disagreement_widens_the_interval():
    agreed = combine(band(0.5, 0.02, 0.005), band(0.5, 0.02, 0.004), weight=0.25)
    apart = combine(band(0.5, 0.02, 0.005), band(0.6, 0.02, 0.004), weight=0.25)
    assert agreed.mean_Q[0] == pytest.approx(0.5) and apart.mean_Q[0] == pytest.approx(0.525)
    assert apart.score_deviation_Q[0] > 2 * agreed.score_deviation_Q[0]
    # Variance of a mixture: 0.02² + w (1 − w) 0.1².
    ratio = np.sqrt(0.02**2 + 0.25 * 0.75 * 0.1**2) / 0.02
    assert apart.curve_deviation_Q[0] / agreed.curve_deviation_Q[0] == pytest.approx(ratio)
    assert apart.score_deviation_Q[0] > apart.curve_deviation_Q[0]
