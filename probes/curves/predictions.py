"""Predicted scores: at the end of a run, or of a task that it did not measure.

The methods are `probes.dynamics.predict` and `probes.dynamics.siblings`. Here it is decided which runs and scores are
asked for, and the answers become a result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from pretrain.track.legible import legible_count
from probes.curves.asked import Load, Names, held_against, known, names_in
from probes.curves.results import Results
from probes.curves.text_table import render_table, series_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from probes.dynamics.predict import Prediction
    from probes.dynamics.references import References
    from probes.dynamics.siblings import UnseenTask
    from probes.dynamics.table import CurveTable, Series

_SHOWN_REFUSALS = 6


class Predictions(Results["Prediction | UnseenTask"]):
    """Predicted scores with intervals, and those that are refused with the reason.

    Attributes:
        table: all that was read, what came after the prediction included.
        seen: by run, what was known of it and of the others when it was predicted.
        records: a `Prediction` for each score, or an `UnseenTask` where tasks were asked for that were not measured.
        references: names of the runs that were to be learnt from; None if they were chosen.
        left_out: runs that were named as references, or are smaller runs of a run's family, but cannot be any, with
            the reason.
        notes: how references were read.
    """

    def __init__(
        self,
        table: CurveTable,
        records: Sequence[Prediction | UnseenTask],
        *,
        seen: Mapping[str, CurveTable],
        held: References | None = None,
        no_references: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(table, records, held=held)
        self.seen = dict(seen)
        self.left_out = self.left_out | dict(no_references or {})

    def rows(self) -> list[dict[str, Any]]:
        """A row for each score: where, its value now, what is predicted with its interval, or why nothing is."""
        return [self._row(found) for found in self.records]

    def text(self) -> str:
        """What is predicted, then by which runs, then what is refused, one line a reason."""
        rows = self.rows()
        predicted = [row for row in rows if not row["refused"]]
        shown = [{key: cell for key, cell in row.items() if key not in ("method", "refused")} for row in predicted]
        lines = [render_table(shown)] if shown else []
        lines += [f"from {method}" for method in dict.fromkeys(row["method"] for row in predicted)]
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """What is refused, a sentence for each run and reason, after the references that were left out."""
        rows, told = self.rows(), super().remarks()
        for run, reason in dict.fromkeys((row["run"], row["refused"]) for row in rows if row["refused"]):
            names = [series_name(row, rows) for row in rows if (row["run"], row["refused"]) == (run, reason)]
            shown = ", ".join(dict.fromkeys(names[:_SHOWN_REFUSALS])) + (", …" if len(names) > _SHOWN_REFUSALS else "")
            told.append(f"refused, {run}, {len(names)} series: {reason} {shown}")
        return told

    def plot(self, *, limit: int = 24) -> Figure:
        """Curves so far, the prediction with its interval where it is made, and the references faintly behind."""
        from probes.curves.draw.predictions import draw_predictions

        return draw_predictions(self, limit=limit)

    def came(self, found: Prediction) -> float | None:
        """The score that the run did have at the predicted position; None where it has not come so far."""
        seen = self.seen[found.run]
        whole = self.table.get(found.run, found.series)
        if whole is None or seen is self.table or abs(whole.tokens_C[-1] - found.tokens) > 0.005 * found.tokens:
            return None
        return float(whole.value_C[-1])

    def _row(self, found: Prediction | UnseenTask) -> dict[str, Any]:
        from probes.dynamics.predict import LEVEL, Prediction

        shots = found.series.num_fewshot if found.series.num_fewshot >= 0 else None
        named = {"run": found.run, "task": found.series.task, "metric": found.series.metric, "shots": shots}
        if not isinstance(found, Prediction):
            last = -1 if len(found.tokens_Q) else None
            return named | {
                "at_tokens": found.tokens_Q[last] if last else None,
                "predicted": found.value_Q[last] if last else None,
                f"low_{LEVEL:.0%}": found.low_Q[last] if last else None,
                f"high_{LEVEL:.0%}": found.high_Q[last] if last else None,
                "refused": found.refused,
                "method": found.method,
            }
        now = self.seen[found.run].get(found.run, found.series)
        came = self.came(found)
        return named | {
            "at_tokens": found.tokens,
            "now": float(now.value_C[-1]) if now is not None else None,
            "predicted": found.value,
            f"low_{LEVEL:.0%}": found.low,
            f"high_{LEVEL:.0%}": found.high,
            **({"came": came} if came is not None else {}),
            "refused": found.refused,
            "method": found.method,
        }


def predict(
    table: CurveTable,
    *,
    run: Names = None,
    references: Names = None,
    at_tokens: float | None = None,
    seen: float | None = None,
    metric: Names = None,
    unseen: Names = None,
    load: Load | None = None,
) -> Predictions:
    """Predicts scores with intervals: at the end of runs in progress, or of tasks that they did not measure.

    Args:
        table: the curves, from `load`.
        run: names of runs; those in progress unless named, with `unseen` all.
        references: what to learn from instead of finished smaller runs of the family: names of runs in the table
            (`*` stands for anything), files and folders, or published curves such as `published:pythia`.
        at_tokens: where to predict, in tokens; at each run's planned end unless given.
        seen: share of a run, above 0 and below 1: predict as if only that had been seen, at the planned end.
        metric: only these metrics.
        unseen: tasks to predict from those that a run has measured, learnt on the other runs.
        load: reads the paths among `references`, where they need more than their names, for example
            `lambda paths: curves.load(*paths, tokens_per_step=2e6)`.

    Returns:
        One prediction for each run and score; refused ones are among them, with the reason.

    Raises:
        ProbeError: a run, task, metric or reference is not there, or nothing is left to predict.
    """
    only = known(run, table.runs, "--run")
    metrics = set(_metrics(table, metric))
    tasks = names_in(unseen)
    names = only or (list(table.runs) if tasks or seen else _in_progress(table, at_tokens))
    held = held_against(table, references, load)
    whole, learnt = (held.table, held.names) if held is not None else (table, None)
    records: Sequence[Prediction | UnseenTask]
    known_by: dict[str, CurveTable] = {}
    no_references: dict[str, str] = {}
    if tasks:
        targets = [one for one in _targets(table, tasks) if one.metric in metrics]
        records = _unseen(whole, names, targets, references=learnt, as_if=bool(only))
    else:
        records, known_by, no_references = _finals(
            whole, names, metrics, references=learnt, at_tokens=at_tokens, seen=seen
        )
    if not records:
        raise ProbeError(_nothing_left(table, tasks, is_asked=bool(only or seen), at_tokens=at_tokens))
    return Predictions(whole, records, seen=known_by, held=held, no_references=no_references)


def _metrics(table: CurveTable, metric: Names) -> list[str]:
    """The metrics asked for, all of the table unless named."""
    there = sorted({curve.metric for curve in table})
    for name in names_in(metric):
        if name not in there:
            raise ProbeError(f"--metric {name}: no run has it.{did_you_mean(name, there)} Known: {', '.join(there)}.")
    return names_in(metric) or there


def _targets(table: CurveTable, tasks: Sequence[str]) -> list[Series]:
    """The series of the tasks to predict as unseen."""
    targets = [one for one in table.series() if one.task in tasks]
    missing = set(tasks) - {one.task for one in targets}
    if missing:
        hint = did_you_mean(min(missing), sorted({one.task for one in table.series()}))
        raise ProbeError(f"--unseen {', '.join(sorted(missing))}: no run in the table has measured it.{hint}")
    return targets


def _in_progress(table: CurveTable, at_tokens: float | None) -> list[str]:
    """Runs before their planned end; with a position those of unknown length, or else all that end before it."""
    unfinished = [name for name in table.runs if not table.is_finished(name)]
    if at_tokens is None:
        return unfinished
    open_ended = [name for name, facts in table.runs.items() if facts.total_tokens is None or name in unfinished]
    return [name for name in open_ended or table.runs if table.last_tokens(name) < at_tokens]


def _nothing_left(table: CurveTable, unseen: Sequence[str], *, is_asked: bool, at_tokens: float | None) -> str:
    """Why nothing is predicted; `is_asked` where runs were named, or a share of all."""
    if unseen:
        return (
            f"Every run in the table has measured {', '.join(unseen)}. Name one with --run NAME to have it "
            "predicted as if that run had not."
        )
    if is_asked or _in_progress(table, at_tokens):
        from probes.dynamics.metrics import PREDICTED

        return f"The runs have none of the metrics that can be predicted: {', '.join(PREDICTED)}."
    furthest = max(table.runs, key=table.last_tokens)
    last = f"the latest checkpoint of {furthest} is at {legible_count(int(table.last_tokens(furthest)))} tokens"
    if at_tokens is not None:
        return f"No run of the table ends before --at-tokens {at_tokens:.4g}: {last}. Give a later position."
    if any(facts.total_tokens is None for facts in table.runs.values()):
        return (
            f"How long the runs are to be is not known: {last}. Say where to predict with --at-tokens N, or write the "
            "planned end into a column total_tokens of the table or of a --runs file. --seen 0.3 predicts the latest "
            "checkpoint from the first 30 %."
        )
    past = [
        name for name in table.runs if table.last_tokens(name) > 1.005 * (table.runs[name].total_tokens or float("inf"))
    ]
    if past:
        now, planned = (
            legible_count(int(tokens)) for tokens in (table.last_tokens(past[0]), table.runs[past[0]].total_tokens or 0)
        )
        others = f" The same holds of {', '.join(past[1:])}." if len(past) > 1 else ""
        return (
            f"{past[0]} is past its planned end: its latest checkpoint is at {now} tokens, {planned} were planned."
            f"{others} Correct total_tokens in the table or in a --runs file, or name a later position with "
            "--at-tokens. --seen 0.3 predicts the planned end from the first 30 %."
        )
    return (
        "Every run in the table is at its planned end. Name one with --run NAME and how much of it to look at with "
        "--seen 0.3, or a later position with --at-tokens."
    )


def _finals(
    table: CurveTable,
    names: Sequence[str],
    metrics: Collection[str],
    *,
    references: Sequence[str] | None,
    at_tokens: float | None,
    seen: float | None,
) -> tuple[list[Prediction], dict[str, CurveTable], dict[str, str]]:
    """Predictions of later scores, by run what they were made from, and which smaller runs are no references."""
    from probes.dynamics.predict import predict_finals, predictable
    from probes.dynamics.references import family_references

    found: list[Prediction] = []
    known_by: dict[str, CurveTable] = {}
    left_out: dict[str, str] = {}
    for name in names:
        total = table.runs[name].total_tokens or table.last_tokens(name)
        known_by[name] = table.until(name, seen * total) if seen else table
        wanted = [one for one in predictable(known_by[name], name) if one.metric in metrics]
        at = at_tokens or (total if seen else None)
        learnt = references
        if learnt is None:
            held = family_references(known_by[name], name)
            learnt, left_out = held.names, left_out | held.left_out
        found += predict_finals(known_by[name], name, series=wanted, references=learnt, tokens=at)
    return found, known_by, left_out


def _unseen(
    table: CurveTable,
    names: Sequence[str],
    targets: Sequence[Series],
    *,
    references: Sequence[str] | None,
    as_if: bool,
) -> list[UnseenTask]:
    """Curves of tasks in runs that did not measure them, or are taken as if they had not."""
    from probes.dynamics.align import loss_series
    from probes.dynamics.chance import at_chance
    from probes.dynamics.predict import predictable
    from probes.dynamics.siblings import predict_unseen
    from probes.dynamics.watched import is_loss

    losses = {curve.series for curve in table if is_loss(curve)}
    shared = loss_series(table)
    found: list[UnseenTask] = []
    for name in names:
        own = set(predictable(table, name)) - losses
        wanted = [one for one in targets if as_if or table.get(name, one) is None]
        for metric, shots in dict.fromkeys((one.metric, one.num_fewshot) for one in wanted):
            of_kind = [one for one in wanted if (one.metric, one.num_fewshot) == (metric, shots)]
            like = [one for one in own if (one.metric, one.num_fewshot) == (metric, shots)]
            found += predict_unseen(
                table,
                name,
                of_kind,
                measured=sorted(set(like) - at_chance(table, like, references=list(table.runs)).keys() - set(targets)),
                loss=shared,
                learn_from=references if references is not None else list(table.runs),
            )
    return found
