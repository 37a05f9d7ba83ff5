"""Families of runs with known laws: sizes × tokens, checkpoint noise and offsets of runs, all drawn from one seed.

What the dynamics' predictions are tested on where the truth has to be known. Nothing here imports what is tested: laws
are written out again, from the papers' formulas.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, Series, TaskCurve, make_curve

TOKENS_PER_STEP = 2_000_000.0
STEPS = (500, 1_000, 3_000, *range(13_000, 150_000, 10_000), 150_000)
"""As Pythia's; the first is before half a percent of the run."""
TOTAL_TOKENS = STEPS[-1] * TOKENS_PER_STEP
SIZES = (4e8, 8e8, 1.5e9, 3e9, 6e9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """The true course of one task.

    Attributes:
        task: its name.
        metric: of accuracies more is better, of `ce_loss`, `gold_bpb` and `ppl` less.
        domain: its domain.
        chance: the score of guessing; nan for losses.
        form: `power`, 1 − score = A n^−α + B d^−β + E (losses: the right side itself; perplexities: its exponential);
            `direct`, −log((score − chance) / (1 − chance)) = A n^−α + B d^−β.
        unit: parameters and tokens that n and d are measured in.
        size: A and α.
        tokens: B and β.
        floor: E.
        noise: standard deviation of a checkpoint about the curve (perplexities: of the logarithm).
    """

    task: str
    metric: str = "acc"
    domain: str = "knowledge"
    chance: float = 0.25
    form: str = "direct"
    unit: tuple[float, float] = (1e9, 1e11)
    size: tuple[float, float] = (0.3, 0.4)
    tokens: tuple[float, float] = (0.3, 0.4)
    floor: float = 0.2
    noise: float = 0.004

    @property
    def series(self) -> Series:
        return Series(self.task, self.metric, 0)

    @property
    def falls(self) -> bool:
        return self.metric in ("ce_loss", "gold_bpb", "ppl")

    def judged(self, parameters: float, tokens_C: np.ndarray) -> np.ndarray:
        """The noiseless curve, more being better; of perplexities in nats."""
        n, d_C = parameters / self.unit[0], np.asarray(tokens_C, np.float64) / self.unit[1]
        # Untrained is as after the first thousandth: 0 tokens have no power.
        total_C = self.size[0] * n ** -self.size[1] + self.tokens[0] * np.maximum(d_C, 1e-3) ** -self.tokens[1]
        if self.falls:
            return -(total_C + self.floor)
        if self.form == "power":
            return 1.0 - (total_C + self.floor)
        return self.chance + (1.0 - self.chance) * np.exp(-total_C)

    def in_metric(self, judged_C: np.ndarray) -> np.ndarray:
        if not self.falls:
            return judged_C
        return np.exp(-judged_C) if self.metric == "ppl" else -judged_C


ABILITIES = (
    Law(task="alpha", size=(0.30, 0.5), tokens=(0.25, 0.5)),
    Law(task="beta", size=(0.20, 0.3), tokens=(0.40, 0.3), noise=0.006),
    Law(task="gamma", domain="commonsense", chance=0.5, size=(0.5, 0.35), tokens=(0.35, 0.45), noise=0.005),
    Law(
        task="delta", domain="commonsense", chance=0.0, form="power", size=(0.15, 0.35), tokens=(0.10, 0.4), floor=0.15
    ),
)
LOSS = Law(
    task="held_out",
    metric="ce_loss",
    domain=LOSS_DOMAIN,
    chance=float("nan"),
    size=(0.5, 0.35),
    tokens=(0.4, 0.35),
    floor=1.8,
    noise=0.006,
)
LAWS = (*ABILITIES, LOSS)


def family(
    laws: Sequence[Law] = LAWS,
    *,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
    noise: float = 1.0,
    offset: float = 0.0,
    steps: Sequence[int] = STEPS,
    tokens_per_step: float = TOKENS_PER_STEP,
) -> CurveTable:
    """Finished runs of one family, named by `run_of`.

    Args:
        laws: one curve each.
        sizes: parameters of the runs.
        seed: of noise and offsets; runs and tasks draw apart, so that one more changes nothing of the others.
        noise: factor on the laws' own.
        offset: standard deviation of what a run's whole curve is off the law, in units of the law's noise.
        steps: checkpoints, the last at the planned end.
        tokens_per_step: tokens of a step.
    """
    tokens_C = np.array(steps, np.float64) * tokens_per_step
    facts, curves = [], []
    for position, parameters in enumerate(sizes):
        run = run_of(parameters)
        facts.append(RunFacts(name=run, family="made", parameters=parameters, total_tokens=float(tokens_C[-1])))
        for number, law in enumerate(laws):
            random = np.random.default_rng([seed, position, number])
            off = offset * law.noise * random.normal()
            judged_C = law.judged(parameters, tokens_C) + off + noise * law.noise * random.normal(size=len(tokens_C))
            curves.append(
                make_curve(
                    np.array(steps, np.float64),
                    tokens_C,
                    law.in_metric(judged_C),
                    np.full(len(tokens_C), 2.0 * law.noise if np.isfinite(law.chance) else np.nan),
                    run=run,
                    series=law.series,
                    domain=law.domain,
                    chance=law.chance,
                )
            )
    return CurveTable(facts, curves)


def run_of(parameters: float) -> str:
    """The name of the family's run of this size."""
    return f"made-{parameters / 1e6:g}M"


def changed(
    table: CurveTable, change: Callable[[TaskCurve], TaskCurve | None], *, facts: Mapping[str, RunFacts] | None = None
) -> CurveTable:
    """The table with each curve as `change` gives it back (None drops it), and other facts for some runs."""
    curves = [new for curve in table if (new := change(curve)) is not None]
    return CurveTable([(facts or {}).get(name, known) for name, known in table.runs.items()], curves)


def with_values(curve: TaskCurve, value_C: np.ndarray) -> TaskCurve:
    """The curve with other scores at its checkpoints."""
    return replace(curve, value_C=np.asarray(value_C, np.float64))


def write_csv(table: CurveTable, path: Path) -> Path:
    """The table as a user would write it: one row a score."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = "run family parameters total_tokens step tokens task domain metric num_fewshot value stderr chance"
        writer.writerow(names.split())
        for curve in table:
            facts = table.runs[curve.run]
            of_run = [curve.run, facts.family, facts.parameters, facts.total_tokens]
            of_task = [curve.task, curve.domain, curve.metric, curve.num_fewshot]
            for row in zip(curve.step_C, curve.tokens_C, curve.value_C, curve.stderr_C, strict=True):
                step, tokens, value, stderr = (number if np.isfinite(number) else "" for number in row)
                if curve.metric == "acc":
                    value = max(value, 0.0)  # noise about guessing 0: no table has a share below 0
                chance = curve.chance if np.isfinite(curve.chance) else ""
                writer.writerow([*of_run, step, tokens, *of_task, value, stderr, chance])
    return path
