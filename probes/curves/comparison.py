"""Runs side by side: how alike their dynamics are across sizes, what arises when, and in which order.

The methods are `probes.dynamics.similarity`, `onset` and `arising`; here they become one result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pretrain.errors import ProbeError
from pretrain.track.legible import legible_count
from probes.curves.asked import Names, known, names_in
from probes.curves.results import Results, frame_of
from probes.curves.text_table import render_table

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from matplotlib.figure import Figure

    from probes.dynamics.arising import Agreement, Lead
    from probes.dynamics.onset import Arising
    from probes.dynamics.similarity import Similarity, SizeComparison
    from probes.dynamics.table import CurveTable, Series


class Comparison(Results["Similarity"]):
    """How alike the dynamics of tasks are in runs of different sizes, most alike first, and what arises when.

    Attributes:
        table: the runs compared.
        runs: their names, by size.
        series: what was compared of them.
        axis: what they were aligned by: tokens, tokens_per_parameter, flops or loss.
        loss: what the axis `loss` is made of; None for the one that most runs have.
        compared: the similarities with how far their ranking can be relied on.
        domains: of each run, onset and saturation of each domain.
        tasks: of each run, onset and saturation of each task.
    """

    records: tuple[Similarity, ...]

    def __init__(
        self,
        table: CurveTable,
        *,
        runs: Sequence[str],
        series: Sequence[Series],
        loss: Series | None,
        compared: SizeComparison,
        domains: Mapping[str, list[Arising]],
        tasks: Mapping[str, list[Arising]],
    ) -> None:
        super().__init__(table, compared.tasks)
        self.runs, self.series, self.axis, self.loss = list(runs), list(series), compared.axis, loss
        self.compared, self.domains, self.tasks = compared, dict(domains), dict(tasks)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each task: its similarity across sizes with an interval, the ceiling, and the verdict."""
        return _similarity_rows(self.compared)

    def onset_rows(self) -> list[dict[str, Any]]:
        """A row for each domain and each task of each run: onset and saturation, in tokens, with intervals."""
        return [_onset_row(one) for name in self.runs for one in [*self.domains[name], *self.tasks[name]]]

    def onsets(self) -> pandas.DataFrame:
        """`onset_rows` as a data frame."""
        return frame_of(self.onset_rows())

    def matrix(self) -> np.ndarray:
        """How alike each pair of runs is: the mean similarity of their curves, N × N in the order of `runs`."""
        from probes.dynamics.similarity import similarity_of_runs

        return similarity_of_runs(self.table, self.runs, series=self.series, axis=self.axis, loss=self.loss)

    def text(self) -> str:
        """Similarity, onsets, leads and the agreement of orders."""
        from probes.dynamics.arising import agreements, leads

        by_domain = [one for name in self.runs for one in self.domains[name]]
        ahead = [one for name in self.runs for one in leads(self.domains[name]) if one.words != "unseen"]
        lines = [
            f"Similarity across sizes, aligned by {self.axis}, most alike first:",
            render_table(self.rows()),
            *self.remarks(),
            "\nOnset and saturation of domains, in tokens:",
            render_table([_onset_row(one) for one in by_domain]),
            "\nTasks in the order in which they arise, in tokens (--onsets FILE writes intervals and saturation):",
            *(f"{name}: {_order(self.tasks[name])}" for name in self.runs),
            "\nLead of one domain over another, as a ratio of tokens at their onsets:",
            render_table([_lead_row(one) for one in ahead]),
        ]
        if len(self.runs) > 1:
            lines.append("\nWhether runs agree on the order in which tasks arise (Kendall τ):")
            lines.append(render_table([_agreement_row(one) for one in agreements(self.tasks)]))
        return "\n".join(lines)

    def remarks(self) -> list[str]:
        """How far the ranking of the tasks can be relied on, and which runs could be put beside an original."""
        from probes.dynamics.originals import hints

        return [_stability(self.compared), *hints(self.table, self.runs)]

    def plot(self, *, limit: int = 24) -> Figure:
        """The runs' curves of each series on the common axis, and how alike each pair of runs is."""
        from probes.curves.draw.comparison import draw_comparison

        return draw_comparison(self, limit=limit)


def compare(
    table: CurveTable,
    *,
    run: Names = None,
    align: str = "tokens",
    loss: str | None = None,
    metric: Names = None,
    all: bool = False,
    draws: int = 100,
) -> Comparison:
    """Compares the dynamics of runs: how alike tasks develop across sizes, what arises when, and which leads.

    Args:
        table: the curves, from `load`; similarity takes runs of one family and known sizes.
        run: only these runs.
        align: the axis that runs are compared on: `tokens`, `tokens_per_parameter`, `flops` or `loss`.
        loss: `TASK:METRIC` of the loss to align by, where there are several.
        metric: only these metrics.
        all: every part of large benchmarks, too (slow).
        draws: of each bootstrap, at least 2.

    Raises:
        ProbeError: a run is not there, there is nothing to align by, or no curve is left to compare.
    """
    from probes.dynamics.align import find_series
    from probes.dynamics.arising import domains_arising, order_of_arising
    from probes.dynamics.similarity import compare_sizes

    if draws < 2:
        raise ProbeError(f"--draws {draws}: an interval takes 2 draws or more; 100 are usual.")
    names = table.by_size(known(run, table.runs, "--run") or table.runs)
    table = table.select(runs=names)
    series = _chosen(table, names_in(metric), with_parts=all)
    aligned_by = find_series(table, loss) if loss else None
    chosen = table.select(series=series)
    return Comparison(
        table,
        runs=names,
        series=series,
        loss=aligned_by,
        compared=compare_sizes(table, series=series, axis=align, loss=aligned_by, draws=draws),
        domains={name: domains_arising(chosen, name, draws=draws) for name in names},
        tasks={name: order_of_arising(chosen, name, series=series, draws=draws) for name in names},
    )


def _chosen(table: CurveTable, metrics: Sequence[str], *, with_parts: bool) -> list[Series]:
    """What is compared: abilities of the wanted metrics, without parts of large benchmarks."""
    from probes.dynamics.benchmarks import parts_of_large_benchmarks
    from probes.dynamics.trust import is_ability

    able = {curve.series for curve in table if is_ability(curve)}
    parts = {} if with_parts else parts_of_large_benchmarks(table.series())
    wanted = [
        one for one in table.series() if one in able and one not in parts and (not metrics or one.metric in metrics)
    ]
    if not wanted:
        there = sorted({one.metric for one in able})
        raise ProbeError(f"No curve is left to compare. Metrics in the table: {', '.join(there)}; --all keeps parts.")
    return wanted


def _similarity_rows(compared: SizeComparison) -> list[dict[str, Any]]:
    return [
        {
            "task": one.series.task,
            "metric": one.series.metric,
            "shots": one.series.num_fewshot if one.series.num_fewshot >= 0 else None,
            "pairs": one.num_pairs,
            "pearson": one.pearson,
            "spearman": one.spearman,
            "closeness": one.closeness,
            "similarity": one.similarity,
            "low_80%": one.low,
            "high_80%": one.high,
            "ceiling": one.ceiling,
            "distance": one.distance,
            "verdict": one.words,
        }
        for one in compared.tasks
    ]


def _stability(compared: SizeComparison) -> str:
    """How far the ranking can be relied on, in a sentence."""
    stability, ceiling = compared.stability["similarity"], compared.ceiling_stability["similarity"]
    if math.isnan(stability):
        return (
            "No ranking: that takes two tasks, and runs of two sizes of one family with four checkpoints or more, from "
            "step 512 on, where they overlap on the axis."
        )
    text = f"The ranking has mean Kendall τ {stability:.2f} under noise and another choice of sizes"
    if math.isnan(ceiling):
        return f"{text}."
    return f"{text}; that of two runs of one size {ceiling:.2f} under noise."


def _order(onsets: list[Arising]) -> str:
    """The tasks of a run from the first onset to the last, then those before, not yet and never."""
    from probes.dynamics.onset import AT

    dated = [f"{one.series} {legible_count(int(one.onset.tokens))}" for one in onsets if one.onset.state == AT]
    states = dict.fromkeys(one.onset.state for one in onsets if one.onset.state != AT)
    others = [
        f"{state}: {', '.join(str(one.series) for one in onsets if one.onset.state == state)}" for state in states
    ]
    return "; ".join([", ".join(dated) or "no onset within the curves", *others])


def _onset_row(one: Arising) -> dict[str, Any]:
    return {
        "run": one.run,
        "domain": one.domain,
        "task": one.series.task,
        "metric": one.series.metric,
        "shots": one.series.num_fewshot if one.series.num_fewshot >= 0 else None,
        "onset": one.onset.state,
        "onset_tokens": one.onset.tokens,
        "onset_low_80%": one.onset.low,
        "onset_high_80%": one.onset.high,
        "saturation": one.saturation.state,
        "saturation_tokens": one.saturation.tokens,
        "saturation_low_80%": one.saturation.low,
        "saturation_high_80%": one.saturation.high,
        "rise_over_noise": one.rise,
        "reason": one.reason,
    }


def _lead_row(one: Lead) -> dict[str, Any]:
    return {
        "run": one.run,
        "first": one.first,
        "second": one.second,
        "verdict": one.words,
        "ratio": one.ratio,
        "low_80%": one.low,
        "high_80%": one.high,
    }


def _agreement_row(one: Agreement) -> dict[str, Any]:
    return {
        "run": one.first,
        "other": one.second,
        "tau": one.tau,
        "low": one.low,
        "high": one.high,
        "tasks": one.num_series,
    }
