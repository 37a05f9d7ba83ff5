"""The one table of training dynamics: runs, and a curve for each metric of each task of each run.

Everything in `probes.dynamics` takes a `CurveTable` and gives plain results. Files are read in `probes.dynamics.load`;
what is known of a task by its name (domain, chance) is in `probes.dynamics.tasks`, of a metric in
`probes.dynamics.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from probes.dynamics.metrics import is_lower_better

if TYPE_CHECKING:
    import pandas

LOSS_DOMAIN = "loss"
"""Domain of curves that measure the language model itself: training loss, validation losses, learning rate."""


_FIRST_STEP, _FIRST_SHARE = 512, 0.0035


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What is known of a run besides its scores.

    Attributes:
        name: unique in a table.
        family: runs of one family share data, tokenizer and recipe and differ in size or length: references of each
            other. Any text; by default the name without its size.
        parameters: N; whether the input embedding counts is the source's choice, but one for a whole family.
        total_tokens: tokens of the whole run as planned; None if unknown.
        flops_per_token: training FLOPs of one token; None takes 6 N.
        ramps_batch_size: whether its plan changes the tokens of a step.
    """

    name: str
    family: str = ""
    parameters: float | None = None
    total_tokens: float | None = None
    flops_per_token: float | None = None
    ramps_batch_size: bool = False

    def flops(self, tokens_C: np.ndarray) -> np.ndarray:
        """Training FLOPs at these positions, float64 (6 N D overflows int64 from 7B × 1.5T tokens on)."""
        each = self.flops_per_token or (6.0 * self.parameters if self.parameters else np.nan)
        return each * np.asarray(tokens_C, np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCurve:
    """One metric of one task over one run; C checkpoints, by tokens, none twice.

    Attributes:
        run: name of the run.
        task: name of the task; `mean` for a domain's mean.
        domain: its domain.
        metric: `acc`, `gold_bpb`, `loss`, …
        num_fewshot: examples in the prompt; -1 if unknown or mixed.
        step_C: int64, optimizer steps; -1 where unknown.
        tokens_C: float64, tokens trained on.
        value_C: float64, finite.
        stderr_C: float64, standard error over items; nan where unknown.
        chance: value of guessing; nan where guessing means nothing (bits per byte, loss).
        plan: hash of the items and prompts; other plans are other curves. Empty if unknown.
    """

    run: str
    task: str
    domain: str
    metric: str
    num_fewshot: int
    step_C: np.ndarray
    tokens_C: np.ndarray
    value_C: np.ndarray
    stderr_C: np.ndarray
    chance: float = float("nan")
    plan: str = ""

    @property
    def series(self) -> Series:
        """What it measures, without the run: curves of one series can be compared between runs."""
        return Series(self.task, self.metric, self.num_fewshot)

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is better (bits per byte, loss)."""
        return is_lower_better(self.metric)

    def rescaled(self) -> TaskCurve:
        """0 at chance, 1 for everything right; the curve itself where chance is unknown."""
        if not np.isfinite(self.chance):
            return self
        room = 1.0 - self.chance
        values = (self.value_C - self.chance) / room
        return replace(self, value_C=values, stderr_C=self.stderr_C / room, chance=0.0)

    def where(self, keep_C: np.ndarray) -> TaskCurve:
        """The checkpoints for which a boolean array holds."""
        arrays = {name: getattr(self, name)[keep_C] for name in ("step_C", "tokens_C", "value_C", "stderr_C")}
        return replace(self, **arrays)

    def until(self, tokens: float) -> TaskCurve:
        """What was known when the run had seen so many tokens."""
        return self.where(self.tokens_C <= tokens * (1 + 1e-9))

    def first_steps(self, total_tokens: float | None) -> int:
        """The step from which a curve says something of its later course: 512, or 0.35 % of a shorter run.

        Before that scores swing about chance, or rise with any training. Measured on Pythia, of which 512 is looked at.
        """
        last_step, last_tokens = float(self.step_C[-1]), float(self.tokens_C[-1])
        total_steps = last_step * total_tokens / last_tokens if total_tokens and last_tokens else last_step
        return min(_FIRST_STEP, int(np.ceil(_FIRST_SHARE * total_steps)))

    def since_step(self, step: int) -> TaskCurve:
        """Without the earliest checkpoints."""
        return self.where((self.step_C >= step) | (self.step_C < 0))

    def __len__(self) -> int:
        return len(self.value_C)


@dataclass(frozen=True, order=True, slots=True)
class Series:
    """What a curve measures: task, metric and number of examples in the prompt."""

    task: str
    metric: str
    num_fewshot: int = -1

    def __str__(self) -> str:
        shots = f", {self.num_fewshot}-shot" if self.num_fewshot >= 0 else ""
        return f"{self.task} ({self.metric}{shots})"


class CurveTable:
    """Runs and their curves.

    Args:
        runs: facts; a run without facts here gets empty ones.
        curves: in any order. Of two curves of one run and series with different plans the longer one is found by `get`;
            both are in `curves`.
        notes: sentences on how the table was read, for whoever had it read; parts of the table have none.
    """

    def __init__(self, runs: Iterable[RunFacts], curves: Iterable[TaskCurve], *, notes: Sequence[str] = ()) -> None:
        self.notes = tuple(notes)
        self.curves: list[TaskCurve] = [curve for curve in curves if len(curve)]
        self.runs: dict[str, RunFacts] = {facts.name: facts for facts in runs}
        self._found: dict[str, dict[Series, TaskCurve]] = {}
        for curve in self.curves:
            self.runs.setdefault(curve.run, RunFacts(name=curve.run))
            of_run, series = self._found.setdefault(curve.run, {}), curve.series
            if series not in of_run or len(curve) > len(of_run[series]):
                of_run[series] = curve

    def get(self, run: str, series: Series) -> TaskCurve | None:
        """The curve of a run and series, if it was measured."""
        return self._found.get(run, {}).get(series)

    def of_series(self, series: Series, runs: Collection[str] | None = None) -> list[TaskCurve]:
        """The curves of all runs (or of these), smallest run first."""
        names = self.by_size(self.runs if runs is None else runs)
        return [curve for name in names if (curve := self.get(name, series)) is not None]

    def of_run(self, run: str) -> list[TaskCurve]:
        """All curves of a run that `get` finds."""
        return list(self._found.get(run, {}).values())

    def series(self) -> list[Series]:
        """Everything measured, in order of first appearance."""
        return list(dict.fromkeys(curve.series for curve in self.curves))

    def select(
        self,
        *,
        runs: Collection[str] | None = None,
        series: Collection[Series] | None = None,
        keep: Callable[[TaskCurve], bool] | None = None,
    ) -> CurveTable:
        """The part of the table with these runs and series, whose curves `keep` wants."""
        chosen = [
            curve
            for curve in self.curves
            if (runs is None or curve.run in runs)
            and (series is None or curve.series in series)
            and (keep is None or keep(curve))
        ]
        facts = [fact for name, fact in self.runs.items() if runs is None or name in runs]
        return CurveTable(facts, chosen)

    def until(self, run: str, tokens: float) -> CurveTable:
        """The table as it was when one run had seen so many tokens; other runs stay whole."""
        return CurveTable(self.runs.values(), [c.until(tokens) if c.run == run else c for c in self.curves])

    def by_size(self, runs: Iterable[str]) -> list[str]:
        """Runs by parameters, then tokens planned, then name; unknown sizes last."""

        def key(name: str) -> tuple[float, float, str]:
            facts = self.runs[name]
            return facts.parameters or np.inf, facts.total_tokens or np.inf, name

        return sorted(runs, key=key)

    def last_tokens(self, run: str) -> float:
        """Tokens at the run's latest measured checkpoint; 0 for a run without curves."""
        return max((float(curve.tokens_C[-1]) for curve in self.of_run(run)), default=0.0)

    def is_finished(self, run: str) -> bool:
        """Whether the latest checkpoint is at the planned end; a run without a plan counts as finished."""
        total = self.runs[run].total_tokens
        return total is None or self.last_tokens(run) >= 0.995 * total

    def to_pandas(self) -> pandas.DataFrame:
        """One row per score, in columns that can be read again.

        The columns are run, family, parameters, total_tokens, step, tokens, flops, task, domain, metric, num_fewshot,
        value, stderr, chance, rescaled (0 at chance, 1 for everything right) and plan. What is unknown is missing; an
        unknown number of examples or step is -1.
        """
        from probes.dynamics.tidy import to_pandas

        return to_pandas(self)

    def __repr__(self) -> str:
        scores = sum(len(curve) for curve in self.curves)
        head = f"CurveTable of {len(self.runs)} run(s), {len(self.curves)} curves, {scores} scores"
        return "\n".join([f"{head}: {', '.join(self.runs)}", *(f"Note: {note}" for note in self.notes)])

    def __iter__(self) -> Iterator[TaskCurve]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)


def curve_of(
    rows: Sequence[tuple[int, float, float, float]],
    *,
    run: str,
    series: Series,
    domain: str,
    chance: float = np.nan,
    plan: str = "",
) -> TaskCurve:
    """A curve from (step, tokens, value, stderr) rows in any order; of rows at equal tokens the last counts."""
    columns = np.array(rows, np.float64).reshape(-1, 4)
    return make_curve(
        columns[:, 0],
        columns[:, 1],
        columns[:, 2],
        columns[:, 3],
        run=run,
        series=series,
        domain=domain,
        chance=chance,
        plan=plan,
    )


def make_curve(
    step_R: np.ndarray,
    tokens_R: np.ndarray,
    value_R: np.ndarray,
    stderr_R: np.ndarray,
    *,
    run: str,
    series: Series,
    domain: str,
    chance: float = np.nan,
    plan: str = "",
) -> TaskCurve:
    """A curve from R rows in any order, by tokens; the last of equal tokens, finite values only."""
    good_R = np.isfinite(value_R) & np.isfinite(tokens_R)
    step_R, tokens_R, value_R, stderr_R = (column[good_R] for column in (step_R, tokens_R, value_R, stderr_R))
    step_R = np.nan_to_num(step_R, nan=-1.0).astype(np.int64)
    order_R = np.argsort(tokens_R, kind="stable")
    sorted_R = tokens_R[order_R]
    last_R = order_R[np.append(sorted_R[1:] != sorted_R[:-1], True)] if len(order_R) else order_R
    return TaskCurve(
        run=run,
        task=series.task,
        domain=domain,
        metric=series.metric,
        num_fewshot=series.num_fewshot,
        step_C=step_R[last_R],
        tokens_C=tokens_R[last_R].astype(np.float64),
        value_C=value_R[last_R].astype(np.float64),
        stderr_C=stderr_R[last_R].astype(np.float64),
        chance=chance,
        plan=plan,
    )
