"""Which tasks and metrics of runs can be trusted now, which few to watch, and which to distrust.

The rule is `probes.dynamics.trust`, the choice `probes.dynamics.recommend`; here they become one result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pretrain.track.legible import legible_count
from probes.curves.asked import Names, known
from probes.curves.results import Results
from probes.curves.text_table import render_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from probes.dynamics.decay import Decay
    from probes.dynamics.ordering import Ordering
    from probes.dynamics.recommend import Recommendation
    from probes.dynamics.table import CurveTable, Series
    from probes.dynamics.trust import Verdict

_SHOWN = (
    "task",
    "metric",
    "shots",
    "score",
    "above_chance",
    "p_value",
    "monotonicity",
    "gain",
    "decay",
    "trusted",
    "reason",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What to look at in one run, and what not.

    Attributes:
        run: its name.
        watch: the few tasks to watch, most telling first.
        soon: tasks that cannot be trusted yet, with the tokens from which on they could be in a finished run of the
            family, and that run's name.
        decay: how much of what it had learnt the run has lost.
        too_early: whether no curve has checkpoints enough to be judged.
    """

    run: str
    watch: tuple[Recommendation, ...]
    soon: dict[Series, tuple[float, str]]
    decay: Decay
    too_early: bool


class Trust(Results["Verdict"]):
    """A verdict for each curve that measures an ability or a loss, with the advice that follows.

    Attributes:
        table: the curves as they were judged.
        records: a `Verdict` for each curve.
        runs: names of the runs, by size.
        advice: by run, what to watch.
        orders: what the order of three runs or more tells of each score.
        limit: of the tasks that are named in an advice.
        with_parts: whether every part of large benchmarks is shown.
    """

    records: tuple[Verdict, ...]

    def __init__(
        self,
        table: CurveTable,
        records: Sequence[Verdict],
        *,
        runs: Sequence[str],
        advice: dict[str, Advice],
        orders: Sequence[Ordering],
        limit: int,
        with_parts: bool,
    ) -> None:
        super().__init__(table, records)
        self.runs, self.advice, self.orders = list(runs), advice, list(orders)
        self.limit, self.with_parts = limit, with_parts

    def rows(self) -> list[dict[str, Any]]:
        """A row for each curve: whether it can be trusted, why, and the numbers that this rests on."""
        by_series = {one.series: _order(one) for one in self.orders}
        return [{**_row(one), **_shared(by_series.get(one.series, {}))} for one in self.records]

    def text(self) -> str:
        """The advice for each run, then the verdicts of each, then what the order of the runs tells."""
        lines = [line for name in self.runs for line in ["", *self._advice_lines(name)]]
        for name in self.runs:
            own = self._of(name)
            shown = _rows(own) if self.with_parts else _collapsed(own)
            lines += [f"\n{name}, verdicts:", render_table([_shown(row) for row in shown], columns=_SHOWN)]
        if self.orders:
            from probes.dynamics.benchmarks import parts_of_large_benchmarks

            parts = set() if self.with_parts else set(parts_of_large_benchmarks(one.series for one in self.orders))
            lines.append("\nWhat the runs' order tells (FineTasks, DataDecide, Signal & Noise):")
            lines.append(render_table([_order(one) for one in self.orders if one.series not in parts]))
        return "\n".join(lines).lstrip("\n")

    def remarks(self) -> list[str]:
        """The advice for each run."""
        return [line for name in self.runs for line in self._advice_lines(name)]

    def plot(self, *, limit: int = 24) -> Figure:
        """Curves with bands of their noise, trusted ones first, the others with the reason."""
        from probes.curves.draw.trusted import draw_trust

        return draw_trust(self, limit=limit)

    def _of(self, run: str) -> list[Verdict]:
        return [verdict for verdict in self.records if verdict.run == run]

    def _advice_lines(self, run: str) -> list[str]:
        """What to watch, what comes soon, and what to distrust."""
        own, advice = self._of(run), self.advice[run]
        tokens = legible_count(int(max((verdict.tokens for verdict in own), default=0.0)))
        lines = [f"{run}, {tokens} tokens: {sum(one.trusted for one in own)} of {len(own)} curves trusted"]
        if advice.too_early:
            lines.append(
                "too early to tell: the very first checkpoints do not count; --since-step N looks at earlier ones"
            )
        lines += [f"watch {one.series}: {one.reason}" for one in advice.watch]
        if not advice.watch:
            lines.append("watch the loss" if advice.decay.tasks else "watch the loss: no task can be trusted yet")
        lines += [
            f"soon {series}: could be trusted from {legible_count(int(at))} tokens in {reference}"
            for series, (at, reference) in advice.soon.items()
        ]
        if advice.decay.tasks:
            meaning = "this speaks of the run" if advice.decay.decays else "luck gives as many among so many tasks"
            lines.append(f"decay: {advice.decay.reason} ({meaning})")
        return [*lines, *_distrust_lines([] if advice.too_early else own, self.limit)]


def trust(
    table: CurveTable,
    *,
    run: Names = None,
    at_tokens: float | None = None,
    since_step: int | None = None,
    watch: int = 6,
    all: bool = False,
) -> Trust:
    """Says which tasks and metrics can be trusted now, and which few to watch.

    Args:
        table: the curves, from `load`.
        run: only these runs.
        at_tokens: judge runs as when they had seen so many tokens.
        since_step: leave out earlier checkpoints; the first 512 steps, or fewer of a short run, unless given.
        watch: recommend at most so many tasks.
        all: show every part of large benchmarks; they are among the rows in any case.

    Raises:
        ProbeError: a run is not there.
    """
    from probes.dynamics.decay import decay_of
    from probes.dynamics.ordering import compare_orders
    from probes.dynamics.recommend import recommend, soon
    from probes.dynamics.trust import TrustRule, judge

    names = table.by_size(known(run, table.runs, "--run") or table.runs)
    rule = TrustRule() if since_step is None else replace(TrustRule(), since_step=since_step)
    seen = _until(table, at_tokens)
    verdicts = judge(seen, runs=names, rule=rule)
    advice = {}
    for name in names:
        own = [verdict for verdict in verdicts if verdict.run == name]
        coming: dict[Series, tuple[float, str]] = {}
        if not seen.is_finished(name):
            own_past = table if at_tokens is None else table.until(name, at_tokens)
            coming = dict(list(soon(own_past, name, rule=rule).items())[:watch])
        advice[name] = Advice(
            run=name,
            watch=tuple(recommend(seen, name, limit=watch, rule=rule, verdicts=own)),
            soon=coming,
            decay=decay_of(seen, name, rule=rule),
            too_early=bool(own) and max(verdict.num_checkpoints for verdict in own) < rule.checkpoints,
        )
    orders = compare_orders(seen, runs=names) if len(names) > 2 else []
    return Trust(seen, verdicts, runs=names, advice=advice, orders=orders, limit=watch, with_parts=all)


def _until(table: CurveTable, tokens: float | None) -> CurveTable:
    from probes.dynamics.table import CurveTable

    return table if tokens is None else CurveTable(table.runs.values(), [curve.until(tokens) for curve in table])


def _distrust_lines(verdicts: Sequence[Verdict], limit: int) -> list[str]:
    """The scores that cannot be trusted: a few with the reason, decaying ones first, then the names of others."""
    rows = [row for row in _collapsed(verdicts) if not row["trusted"]]
    rows.sort(key=lambda row: not row.get("decays"))
    lines = [f"distrust {_name(row)}: {row['reason']}" for row in rows[:limit]]
    others = rows[limit:]
    if others:
        named = ", ".join(_name(row) for row in others[:limit])
        lines.append(f"distrust {len(others)} more: {named}{', …' if len(others) > limit else ''}")
    return lines


def _name(row: dict[str, Any]) -> str:
    shots = f", {row['shots']}-shot" if row["shots"] is not None else ""
    return f"{row['task']} ({row['metric']}{shots})"


def _rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return sorted((_row(verdict) for verdict in verdicts), key=lambda row: not row["trusted"])


def _row(verdict: Verdict) -> dict[str, Any]:
    facts = asdict(verdict)
    series = facts.pop("series")
    shots = series["num_fewshot"] if series["num_fewshot"] >= 0 else None
    run = facts.pop("run")
    if not verdict.noise_measured:
        facts |= dict.fromkeys(("noise", "gain", "rise", "decay"))
    return {"run": run, "task": series["task"], "metric": series["metric"], "shots": shots, **facts}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row to print: scores of different units in one column have no common number of decimals."""
    written = {
        key: f"{row[key]:.{digits}g}" for key, digits in (("score", 4), ("p_value", 1)) if row.get(key) is not None
    }
    return row | {key: text for key, text in written.items() if text != "nan"}


def _collapsed(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Rows with one line for each large benchmark, which says how many parts can be trusted."""
    from probes.dynamics.benchmarks import parts_of_large_benchmarks

    part_of = parts_of_large_benchmarks(verdict.series for verdict in verdicts)
    rows = _rows([verdict for verdict in verdicts if verdict.series not in part_of])
    groups: dict[tuple[str, str, int], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.series in part_of:
            key = part_of[verdict.series], verdict.series.metric, verdict.series.num_fewshot
            groups[key].append(verdict)
    for (benchmark, metric, shots), group in groups.items():
        count = sum(verdict.trusted for verdict in group)
        rows.append(
            {
                "task": f"{benchmark} ({len(group)} parts)",
                "metric": metric,
                "shots": shots if shots >= 0 else None,
                "score": sum(verdict.score for verdict in group) / len(group),
                "trusted": 2 * count >= len(group),
                "reason": f"{count} of {len(group)} parts trusted; --all shows them",
            }
        )
    return rows


def _order(one: Ordering) -> dict[str, Any]:
    return {
        "task": one.series.task,
        "metric": one.series.metric,
        "shots": one.series.num_fewshot if one.series.num_fewshot >= 0 else None,
        "runs": len(one.runs),
        "ordering_consistency": one.ordering_consistency,
        "early_tokens": one.early_tokens,
        "decision_accuracy": one.decision_accuracy,
        "signal_to_noise": one.signal_to_noise,
        "is_non_random": one.is_non_random,
    }


def _shared(order: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in order.items() if key not in ("task", "metric", "shots", "runs")}
