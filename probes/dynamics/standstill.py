"""A run that does not train: scores of the same weights twice, or a learning rate of 0 before the end."""

from __future__ import annotations

from probes.dynamics.evidence import ACT, Evidence
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series

_FEWEST_SERIES = 3
"""Two equal scores may be luck."""


def unchanged(table: CurveTable, run: str, tokens: float) -> list[Evidence]:
    """Scores that are the same to the last bit are scores of the same weights."""
    curves = [
        curve
        for curve in table.of_run(run)
        if curve.tokens_C[-1] == tokens and len(curve) > 1 and curve.tokens_C[-2] > 0
    ]
    moving = [curve for curve in curves if curve.domain != LOSS_DOMAIN]
    if len(moving) < _FEWEST_SERIES or any(curve.value_C[-1] != curve.value_C[-2] for curve in moving):
        return []
    sentence = (
        f"all {len(moving)} scores are exactly those of step {moving[0].step_C[-2]:,}: the weights have not changed. "
        "Look at the learning rate, at skipped steps, at which checkpoint was scored"
    )
    return [Evidence(kind="unchanged", verdict=ACT, sentence=sentence)]


def no_learning_rate(table: CurveTable, run: str, tokens: float) -> list[Evidence]:
    """A learning rate of 0 before the planned end."""
    curve = table.get(run, Series("train", "learning_rate"))
    total = table.runs[run].total_tokens
    if curve is None or curve.value_C[-1] > 0 or curve.tokens_C[-1] == 0 or (total and tokens >= 0.99 * total):
        return []
    return [Evidence(kind="learning rate", verdict=ACT, sentence="the learning rate is 0 before the end of the run")]
