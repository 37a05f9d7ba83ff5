"""Differences between two checkpoints on the same items, from what `probes.store` keeps of each.

Two checkpoints answer the same questions, and are right on mostly the same ones: the standard error of the
difference item by item is far smaller than that of two independent means. Numbers only; no charts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.errors import ProbeError
from probes.metrics import ItemValues, first_right, item_starts, item_values
from probes.plan import RequestTable

COLUMNS = (
    "item", "choice", "is_choice", "is_gold", "is_whole", "log_likelihood", "is_greedy", "num_tokens", "num_chars",
    "num_bytes",
)  # fmt: skip
"""Of a file of items, beside `task`; see `probes.request.Request`."""


@dataclass(frozen=True, slots=True)
class Items:
    """The answers of one checkpoint to every request of a plan.

    Attributes:
        tasks: names of the tasks.
        plan_hash: names the plan; differences between plans are refused.
        table: the requests, without the pairs of tokens they consist of.
        log_likelihood_R: float64 [requests], in nats.
        is_greedy_R: bool [requests].
    """

    tasks: tuple[str, ...]
    plan_hash: str
    table: RequestTable
    log_likelihood_R: np.ndarray
    is_greedy_R: np.ndarray


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much a metric has risen from one checkpoint to another.

    Attributes:
        difference: mean over items of second − first.
        stderr: of that mean, std(ddof=1) of the items' differences / √items; None for a single item.
        num_items: items that both have.
    """

    difference: float
    stderr: float | None
    num_items: int


def read_items(path: Path) -> Items:
    """Reads what `ProbeStore.write_items` wrote.

    Raises:
        ProbeError: missing, damaged, or without a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read = pq.read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (read.schema.metadata or {}).items()}
        columns = {name: read.column(name).to_numpy() for name in COLUMNS}
        names = read.column("task").combine_chunks().dictionary_decode().to_numpy(zero_copy_only=False)
        plan_hash = metadata["plan_hash"]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ProbeError(f"Items {path} cannot be read: {type(error).__name__}: {error}.") from error
    tasks = tuple(dict.fromkeys(names.tolist()))
    numbers = {name: number for number, name in enumerate(tasks)}
    table = RequestTable(
        task_R=np.array([numbers[name] for name in names.tolist()], np.int32),
        **{f"{name}_R": columns[name] for name in COLUMNS if name not in ("log_likelihood", "is_greedy", "num_tokens")},
        span_pairs=np.zeros(0, np.int64),
        span_offsets_R1=np.concatenate([[0], np.cumsum(columns["num_tokens"], dtype=np.int64)]),
    )
    return Items(tasks, plan_hash, table, columns["log_likelihood"], columns["is_greedy"])


def paired_difference(first: Items, second: Items, metric: str = "acc", *, task: str | None = None) -> PairedDifference:
    """The difference of a metric between two checkpoints, item by item.

    Args:
        first: of the checkpoint that is subtracted.
        second: of the other.
        metric: `acc` (the likeliest choice is right; where there is one answer only, it is what greedy decoding
            gives), `acc_norm` (by characters of the answer without leading white space, which lm-eval counts
            where it is the answer's own), `bits_per_byte` of texts, or a name of `probes.metrics.item_values`.
        task: of this task only; None takes all items of all tasks that have the metric as one set.

    Raises:
        ProbeError: the two do not come from the same plan, or nothing in them has that task or metric.
    """
    if first.plan_hash != second.plan_hash:
        raise ProbeError(
            f"The two checkpoints were scored by different plans ({first.plan_hash} and {second.plan_hash}): their "
            f"items or prompts differ, and cannot be paired. Score both with the same suite and settings."
        )
    if task is not None and task not in first.tasks:
        raise ProbeError(f"task={task!r} is not among the items. Known: {', '.join(first.tasks)}.")
    differences, known = [], set()
    for number, name in enumerate(first.tasks):
        if task in (None, name):
            values = [_values(items, number) for items in (first, second)]
            known |= set(values[0])
            if metric in values[0]:
                differences.append(values[1][metric].value_I - values[0][metric].value_I)
    if not differences:
        raise ProbeError(f"metric={metric!r} is not among the items' metrics. Known: {', '.join(sorted(known))}.")
    difference = np.concatenate(differences)
    stderr = float(np.std(difference, ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else None
    return PairedDifference(float(np.mean(difference)), stderr, len(difference))


def _values(items: Items, task: int) -> dict[str, ItemValues]:
    """Accuracies and continuous metrics of a task's items; for text without answers its bits per byte."""
    table, scores = items.table, items.log_likelihood_R
    values = item_values(table, task, scores)
    choices = np.flatnonzero((table.task_R == task) & table.is_choice_R)
    if len(choices):
        starts, counts = item_starts(table.item_R[choices])
        numbers = table.item_R[choices][starts]
        if (counts == 1).all():
            values["acc"] = ItemValues(numbers, items.is_greedy_R[choices].astype(np.float64))
        else:
            values["acc"] = ItemValues(numbers, first_right(table, choices, scores[choices]))
            by_char = scores[choices] / table.num_chars_R[choices]
            values["acc_norm"] = ItemValues(numbers, first_right(table, choices, by_char))
    windows = np.flatnonzero((table.task_R == task) & ~table.is_choice_R & ~table.is_whole_R)
    if len(windows) and not len(choices):
        starts, _ = item_starts(table.item_R[windows])
        bits = -np.add.reduceat(scores[windows], starts) * math.log2(math.e)
        num_bytes = np.add.reduceat(table.num_bytes_R[windows], starts)
        values["bits_per_byte"] = ItemValues(table.item_R[windows][starts], bits / num_bytes)
    return values
