"""What others have proposed to tell a useful benchmark curve from a useless one, exactly as they define it.

FineTasks (Kydlíček et al. 2024, with FineWeb's ablations), DataDecide (arXiv 2504.11393) and Signal & Noise (arXiv
2508.13144). Plain arrays in, numbers out: R runs, S seeds, C checkpoints by time. Fineline's own rule is in
`probes.dynamics.trust`.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

FINETASKS_SINCE_TOKENS = 15e9
"""From where FineTasks compares the order of models."""


def monotonicity(value_XC: np.ndarray) -> np.ndarray:
    """FineTasks: Spearman's correlation of time and score, ties sharing their mean rank; at least 0.5 is asked for.

    Returns:
        One value a curve, float64; nan where all scores are equal or there is but one.
    """
    value_XC = np.asarray(value_XC, np.float64)
    count = value_XC.shape[-1]
    rank_XC = stats.rankdata(value_XC, axis=-1) - (count + 1) / 2.0
    time_C = np.arange(1, count + 1) - (count + 1) / 2.0
    scale_X = np.sqrt(np.sum(rank_XC**2, axis=-1) * np.sum(time_C**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale_X > 0, rank_XC @ time_C / scale_X, np.nan))


def signal_to_noise(final_R: np.ndarray, last_C: np.ndarray) -> float:
    """Signal & Noise: the largest difference between runs over their mean, over the relative deviation of checkpoints.

    Args:
        final_R: one score a run (theirs: mean of the last five checkpoints).
        last_C: last checkpoints of one run (theirs: 30 of a large one). They pass all runs' checkpoints flattened for
            small ones, which counts the signal as noise; that is for the caller to do or not.

    Returns:
        inf where the checkpoints do not differ.
    """
    final_R, last_C = np.asarray(final_R, np.float64), np.asarray(last_C, np.float64)
    signal = float(np.ptp(final_R)) / float(np.mean(final_R))
    noise = float(np.std(last_C)) / float(np.mean(last_C))
    return signal / noise if noise else float("inf")


def is_non_random(final_R: np.ndarray, *, chance: float, deviation: float) -> bool:
    """FineTasks: whether the best run is more than three deviations (between seeds, at the end) above chance."""
    return bool(np.max(final_R) - chance > 3.0 * deviation)


def ordering_consistency(value_RC: np.ndarray) -> float:
    """FineTasks: mean Kendall τ-b of the order of runs between neighbouring checkpoints.

    Neighbours of which one has all runs equal say nothing and are left out; nan if none remain. FineTasks looks from
    15B tokens on (`FINETASKS_SINCE_TOKENS`), which is the caller's to cut.
    """
    value_RC = np.asarray(value_RC, np.float64)
    first_PR = _pair_signs(value_RC[:, :-1])
    second_PR = _pair_signs(value_RC[:, 1:])
    scale_P = np.sqrt(np.sum(first_PR != 0, axis=1) * np.sum(second_PR != 0, axis=1))
    if not np.any(scale_P > 0):
        return float("nan")
    return float(np.mean(np.sum(first_PR * second_PR, axis=1)[scale_P > 0] / scale_P[scale_P > 0]))


def decision_accuracy(small_R: np.ndarray, large_R: np.ndarray) -> float:
    """DataDecide: share of pairs of runs whose order at small scale (or early) is that at large scale (or late).

    Pairs that are tied in either abstain; nan if none remain.
    """
    small_P = _pair_signs(np.asarray(small_R, np.float64)[:, None])[0]
    large_P = _pair_signs(np.asarray(large_R, np.float64)[:, None])[0]
    told_P = (small_P != 0) & (large_P != 0)
    return float(np.mean(small_P[told_P] == large_P[told_P])) if np.any(told_P) else float("nan")


def kendall(first_X: np.ndarray, second_X: np.ndarray) -> float:
    """Kendall's τ-b of two rankings; nan where one of them is all ties."""
    return ordering_consistency(np.stack([first_X, second_X], axis=1))


def _pair_signs(value_RC: np.ndarray) -> np.ndarray:
    """−1, 0 or 1 of each pair of runs: checkpoints × pairs."""
    first, second = np.triu_indices(len(value_RC), k=1)
    return np.sign(value_RC[second] - value_RC[first]).T
