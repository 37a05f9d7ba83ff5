"""Which curve can be trusted now: above chance, rising, by more than its noise, and not decaying.

The rule is `TrustRule`; every number it looks at is in the `Verdict`, with the reason in words. What several runs tell
of a task (order, decisions) is in `probes.dynamics.ordering`, the few tasks to watch in `probes.dynamics.recommend`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from probes.dynamics.definitions import monotonicity
from probes.dynamics.metrics import is_score, tells_quality
from probes.dynamics.noise import (
    STDERR_SHARE,
    checkpoint_noise,
    is_noise_measured,
    judged_stderr,
    judged_value,
    unjudged_value,
)
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve

_NO_ABILITIES = frozenset({"bias", LOSS_DOMAIN})
_WINDOW = 3
"""Checkpoints whose mean is called the score now."""
_NO_NOISE = "no noise was measured, since its scores lie on a smooth line"

_UNTRAINED_SHARE, _UNTRAINED_TOKENS = 0.02, 2e9
"""Checkpoints up to this share of a run, and up to so many tokens, show what a model has without having learnt the
task: lengths of sentences and single frequent words are learnt that early and put some parts of BLiMP at 0.7."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustRule:
    """What a curve has to show.

    Attributes:
        since_step: earlier checkpoints are not looked at; by default as `TaskCurve.first_steps` has it.
        checkpoints: fewest checkpoints since then.
        above_chance: standard errors over items that the mean of the last three checkpoints is to be above chance.
        significance: largest p-value of that after Holm's correction over all curves of the run.
        monotonicity: least Spearman correlation with time (FineTasks).
        gain: least rise from the first three checkpoints' mean to the last three's, in units of checkpoint noise; also
            the least rise of the best mean above the floor for a curve to have something to lose.
        unknown_chance_gain: the same of an accuracy whose score of guessing is not known, in place of the criteria on
            chance. Of Pythia's 953 curves at chance (eight tasks and 57 subjects, with their chance taken away) 5 rise
            so much without examples in the prompt, and 1 of 952 with five.
        decay: fall of that mean from its best, in units of the noise before the last three checkpoints, that is decay …
        decay_score: … if it is also more than this, in accuracy, bits per byte or nats.
    """

    since_step: int | None = None
    checkpoints: int = 5
    above_chance: float = 3.0
    significance: float = 0.01
    monotonicity: float = 0.5
    gain: float = 5.0
    unknown_chance_gain: float = 10.0
    decay: float = 2.5
    decay_score: float = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether one curve can be trusted now, and why.

    Attributes:
        run: name of the run.
        series: task, metric and number of examples in the prompt.
        domain: the task's domain.
        parameters: of the run; None if unknown.
        step: latest checkpoint; -1 if unknown.
        tokens: at the latest checkpoint.
        num_checkpoints: since the rule's step.
        chance: score of guessing; nan where guessing means nothing, where the two criteria on chance are left out.
        score: mean of the last three checkpoints, in the metric's unit.
        above_chance: standard errors over items that the score is above chance; nan without chance.
        p_value: of being so far above chance by luck, after Holm's correction over the run's curves; nan without
            chance.
        monotonicity: Spearman's correlation with time; nan for a constant curve.
        noise: checkpoint noise, in the metric's unit; of the logarithm for perplexities.
        noise_measured: False where the scores lie on a smooth line, so that numbers in units of noise mean nothing but
            their sign.
        gain: rise since the rule's step in units of noise: the curve's signal to noise.
        floor: the larger of chance and of what the earliest checkpoints had, which cannot be lost; in the
            metric's unit.
        rise: of the best three-checkpoint mean above the floor, in units of noise.
        risen: whether it rose above the floor by more than luck and noise, so that it has something to lose.
        decay: fall of the three-checkpoint mean from its best, in units of noise.
        decayed: the same in the metric's unit (perplexities: nats).
        decays: whether that is too much, of a curve that had risen.
        trusted: whether all criteria hold.
        reason: why, in words with numbers.
    """

    run: str
    series: Series
    domain: str
    parameters: float | None
    step: int
    tokens: float
    num_checkpoints: int
    chance: float
    score: float
    above_chance: float
    p_value: float
    monotonicity: float
    noise: float
    noise_measured: bool
    gain: float
    floor: float
    rise: float
    risen: bool
    decay: float
    decayed: float
    decays: bool
    trusted: bool
    reason: str


def judge(table: CurveTable, *, runs: Sequence[str] | None = None, rule: TrustRule | None = None) -> list[Verdict]:
    """One verdict for each curve that measures an ability or a loss, runs by size, curves as in the table.

    Judge a table as it was earlier with `CurveTable.until`.

    Args:
        table: the curves.
        runs: all unless named.
        rule: the default one unless given.
    """
    rule = rule or TrustRule()
    names = table.by_size(table.runs if runs is None else runs)
    by_run: dict[str, list[TaskCurve]] = {name: [] for name in names}
    for curve in table:
        # Of curves that differ in their plan alone the one that `get` finds.
        if curve.run in by_run and is_ability(curve) and table.get(curve.run, curve.series) is curve:
            by_run[curve.run].append(curve)
    curves = [curve for name in names for curve in by_run[name]]
    floor_K = np.array([_floor(curve, table) for curve in curves])
    measured = _measure([curve.since_step(_first(curve, table, rule)) for curve in curves], floor_K, rule)
    first = 0
    for name in names:
        stop = first + len(by_run[name])
        for z, p in (("above_chance", "p_value"), ("peak", "peak_p_value")):
            measured[p][first:stop] = holm(special.ndtr(-measured[z][first:stop]))
        first = stop
    return [
        _verdict({key: column[row] for key, column in measured.items()}, curve, table, rule)
        for row, curve in enumerate(curves)
    ]


def is_ability(curve: TaskCurve) -> bool:
    """Whether more of it is better at all, and it is no repetition; measures of bias and learning rates are none."""
    if curve.domain in _NO_ABILITIES:
        return curve.lower_is_better and curve.domain == LOSS_DOMAIN
    return tells_quality(curve.metric)


def holm(p_value_X: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values; nan stays nan and does not count.

    It holds whatever the curves have in common (two metrics of one task do), and unlike a false discovery rate it does
    not get laxer with every task that is well above chance.
    """
    adjusted_X = np.full(len(p_value_X), np.nan)
    known = np.flatnonzero(np.isfinite(p_value_X))
    order = known[np.argsort(p_value_X[known], kind="stable")]
    scaled = p_value_X[order] * np.arange(len(order), 0, -1)
    adjusted_X[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(order) else scaled
    return adjusted_X


_MEASURED = (
    "above_chance",
    "p_value",
    "peak",
    "peak_p_value",
    "monotonicity",
    "noise",
    "gain",
    "floor",
    "rise",
    "decay",
    "decayed",
    "score",
)


def _measure(curves: Sequence[TaskCurve], floor_K: np.ndarray, rule: TrustRule) -> dict[str, np.ndarray]:
    """The numbers of the verdicts; curves with the same checkpoints are measured at once."""
    measured = {name: np.full(len(curves), np.nan) for name in _MEASURED}
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, curve in enumerate(curves):
        if len(curve) >= rule.checkpoints:
            groups[curve.tokens_C.tobytes()].append(row)
    for rows in groups.values():
        tokens_C = curves[rows[0]].tokens_C
        value_KC = np.stack([judged_value(curves[row]) for row in rows])
        stderr_KC = np.stack([judged_stderr(curves[row]) for row in rows])
        chance_K = np.array([curves[row].chance for row in rows])
        for name, column_K in _measure_together(
            tokens_C, value_KC, stderr_KC, chance_K=chance_K, floor_K=floor_K[rows]
        ).items():
            measured[name][rows] = column_K
        measured["score"][rows] = [float(np.mean(curves[row].value_C[-_WINDOW:])) for row in rows]
    return measured


def _measure_together(
    tokens_C: np.ndarray, value_KC: np.ndarray, stderr_KC: np.ndarray, *, chance_K: np.ndarray, floor_K: np.ndarray
) -> dict[str, np.ndarray]:
    count = value_KC.shape[1]
    noise_K = checkpoint_noise(tokens_C, value_KC, stderr_KC)
    # The last three are what is judged, as in a control chart: their own swings must not excuse a fall.
    before = count - _WINDOW if count - _WINDOW >= _WINDOW + 4 else count
    earlier_K = checkpoint_noise(tokens_C[:before], value_KC[:, :before], stderr_KC[:, :before])
    windows_KW = np.lib.stride_tricks.sliding_window_view(value_KC, _WINDOW, axis=1).mean(axis=2)
    with np.errstate(invalid="ignore"):
        stderr_K = np.sqrt(np.mean(stderr_KC[:, -_WINDOW:] ** 2, axis=1))
    # Where the items are unknown, the largest error that the noise allows.
    stderr_K = np.where(np.isfinite(stderr_K), stderr_K, noise_K / STDERR_SHARE)
    best_K = windows_KW.max(axis=1)
    decayed_K = best_K - windows_KW[:, -1]
    # Without a chance the first scores are what any model of this kind has.
    floor_K = np.where(np.isfinite(chance_K), floor_K, np.maximum(floor_K, windows_KW[:, 0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        above_K, peak_K = (windows_KW[:, -1] - chance_K) / stderr_K, (best_K - floor_K) / stderr_K
    return {
        "noise": noise_K,
        "above_chance": above_K,
        "peak": peak_K,
        "monotonicity": monotonicity(value_KC),
        "gain": (windows_KW[:, -1] - windows_KW[:, 0]) / noise_K,
        "floor": floor_K,
        "rise": (best_K - floor_K) / noise_K,
        "decay": decayed_K / earlier_K,
        "decayed": decayed_K,
    }


def _first(curve: TaskCurve, table: CurveTable, rule: TrustRule) -> int:
    if rule.since_step is not None:
        return rule.since_step
    return curve.first_steps(table.runs[curve.run].total_tokens)


def _floor(curve: TaskCurve, table: CurveTable) -> float:
    """The larger of chance and of the scores of the very first checkpoints; no bound where there is neither."""
    total = table.runs[curve.run].total_tokens or float(curve.tokens_C[-1])
    untrained_C = curve.tokens_C <= min(_UNTRAINED_SHARE * total, _UNTRAINED_TOKENS)
    earliest = float(judged_value(curve)[untrained_C].max(initial=-np.inf))
    return max(earliest, curve.chance) if np.isfinite(curve.chance) else earliest


def _verdict(numbers: dict[str, np.ndarray], curve: TaskCurve, table: CurveTable, rule: TrustRule) -> Verdict:
    found = {key: float(number) for key, number in numbers.items()}
    count = len(curve.since_step(_first(curve, table, rule)))
    has_chance = bool(np.isfinite(curve.chance))
    # What never rose has nothing to lose.
    risen = found["rise"] >= rule.gain
    if has_chance:
        risen &= found["peak"] >= rule.above_chance and found["peak_p_value"] <= rule.significance
    decays = risen and found["decay"] > rule.decay and found["decayed"] > rule.decay_score
    # Where the score of guessing is not known, the rise itself must show that a score is above it.
    unknown_chance = not has_chance and is_score(curve.metric)
    if unknown_chance:
        rule = replace(rule, gain=rule.unknown_chance_gain)
    noise_measured = is_noise_measured(curve, found["noise"])
    failures = _failures(found, rule, count=count, has_chance=has_chance, decays=decays, noise_measured=noise_measured)
    if unknown_chance and failures and count >= rule.checkpoints:
        failures.insert(0, "the score of guessing is not known")
    if failures:
        reason = "; ".join(failures)
    else:
        above = f"{found['above_chance']:.0f} standard errors above chance; " if has_chance else ""
        by = f", by {found['gain']:.0f} times its noise" if noise_measured else f"; {_NO_NOISE}"
        reason = f"{above}rises with time (Spearman {found['monotonicity']:.2f}){by}; no decay"
    return Verdict(
        run=curve.run,
        series=curve.series,
        domain=curve.domain,
        parameters=table.runs[curve.run].parameters,
        step=int(curve.step_C[-1]),
        tokens=float(curve.tokens_C[-1]),
        num_checkpoints=count,
        chance=curve.chance,
        noise_measured=noise_measured,
        risen=risen,
        decays=decays,
        trusted=not failures,
        reason=reason,
        floor=float(unjudged_value(curve, np.array([found["floor"]]))[0]),
        **{key: found[key] for key in _MEASURED if key not in ("peak", "peak_p_value", "floor")},
    )


def _failures(
    found: dict[str, float], rule: TrustRule, *, count: int, has_chance: bool, decays: bool, noise_measured: bool
) -> list[str]:
    """What keeps a curve from being trusted, in words."""
    if count < rule.checkpoints:
        return [f"{count} checkpoints after the very first ones, {rule.checkpoints} needed"]
    failures = []
    if has_chance and not found["above_chance"] >= rule.above_chance:
        failures.append(f"{found['above_chance']:.1f} standard errors above chance, {rule.above_chance:g} needed")
    elif has_chance and not found["p_value"] <= rule.significance:
        failures.append(
            f"{found['above_chance']:.1f} standard errors above chance, which luck gives one of so many curves "
            f"(p = {found['p_value']:.2g} after Holm, {rule.significance:g} needed)"
        )
    if not np.isfinite(found["monotonicity"]):
        return [*failures, "all scores are equal"]
    if not found["monotonicity"] >= rule.monotonicity:
        failures.append(f"Spearman {found['monotonicity']:.2f} with time, {rule.monotonicity:g} needed")
    if not found["gain"] >= rule.gain and not noise_measured:
        failures.append(f"ends no better than it began; {_NO_NOISE}")
    elif not found["gain"] >= rule.gain:
        failures.append(f"moved by {found['gain']:.1f} times its noise, {rule.gain:g} needed")
    if decays:
        by = f"{found['decay']:.1f} times its noise" if noise_measured else _NO_NOISE
        failures.append(f"decays: {found['decayed']:.3f} below its best, {by}")
    return failures
