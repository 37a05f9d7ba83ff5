"""Differences between two checkpoints on the same items, from what `probes.store` keeps of each.

Two checkpoints answer the same questions, and are right on mostly the same ones: the standard error of the
difference item by item is far smaller than that of two independent means. Numbers only; no charts. The command line is
`probes.commands.paired`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pretrain.errors import ProbeError
from pretrain.locate import run_of
from probes.metrics import first_right, item_starts, item_values
from probes.plan import RequestTable
from probes.store import ITEMS_FOLDER, items_name

COLUMNS = (
    "item", "choice", "is_choice", "is_gold", "is_whole", "log_likelihood", "is_greedy", "num_tokens", "num_chars",
    "num_bytes",
)  # fmt: skip
"""Of a file of items, beside `task`; see `probes.request.Request`."""


_CHECKPOINT = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, eq=False, slots=True)
class Items:
    """The answers of one checkpoint to every request of a plan.

    Attributes:
        suite: name of the suite.
        step: optimizer steps done.
        tasks: names of the tasks.
        plan_hash: names the plan; differences between plans are refused.
        table: the requests, without the pairs of tokens they consist of.
        log_likelihood_R: float64 [requests], in nats.
        is_greedy_R: bool [requests].
    """

    suite: str
    step: int
    tasks: tuple[str, ...]
    plan_hash: str
    table: RequestTable
    log_likelihood_R: np.ndarray
    is_greedy_R: np.ndarray
    _by_task: dict[int, dict[str, np.ndarray]] = field(default_factory=dict, init=False)

    def values(self, task: str) -> dict[str, np.ndarray]:
        """Every metric of each item of a task: see `paired_difference`."""
        number = self.tasks.index(task)
        if number not in self._by_task:
            self._by_task[number] = _values(self, number)
        return self._by_task[number]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much a metric has risen from one checkpoint to another.

    Attributes:
        first: mean over items at the checkpoint that is subtracted.
        second: at the other.
        difference: second − first.
        stderr: of that mean, std(ddof=1) of the items' differences / √items; None for a single item.
        num_items: items that both have.
    """

    first: float
    second: float
    difference: float
    stderr: float | None
    num_items: int


def open_pair(first: Path, second: Path, *, suite: str | None = None) -> tuple[Items, Items]:
    """The answers of two checkpoints under one plan.

    Args:
        first: a checkpoint of a run, which need not be there any more; a run or a folder that `probes score` wrote, for
            its newest step; or a file of answers.
        second: the same.
        suite: of the plan, where both have answers under several.

    Raises:
        ProbeError: there are no answers, or none that come from one plan.
    """
    both = [_by_plan(path) for path in (first, second)]
    common = sorted(both[0].keys() & both[1].keys())
    if not common:
        raise ProbeError(
            f"{first} and {second} were scored by different plans ({', '.join(both[0])} and {', '.join(both[1])}): "
            f"their items or prompts differ, and cannot be paired. Score both with the same suite and settings."
        )
    pairs = [(read_items(both[0][plan]), read_items(both[1][plan])) for plan in common]
    suites = sorted({one.suite for one, _ in pairs})
    wanted = [pair for pair in pairs if suite in (None, pair[0].suite)]
    if not wanted or (suite is None and len(suites) > 1):
        named = f"--suite {suite} is not among them" if suite is not None else "Choose one with --suite NAME"
        raise ProbeError(f"{first} and {second} were both scored by the suites {', '.join(suites)}. {named}.")
    return max(wanted, key=lambda pair: (pair[1].step, pair[0].step))


def _by_plan(path: Path) -> dict[str, Path]:
    """Files of answers by the hash of their plan, one each."""
    if path.suffix == ".parquet":
        return {read_items(path).plan_hash: path}
    match, root = _CHECKPOINT.fullmatch(path.name), run_of(path)
    found = {}
    for folder in sorted((root / ITEMS_FOLDER).glob("*")):
        pattern = items_name(int(match[1])) if match else "step_*.parquet"
        files = sorted(folder.glob(pattern), key=lambda file: (len(file.name), file.name))
        if files:
            found[folder.name] = files[-1]
    if not found:
        there = sorted(file.stem for file in (root / ITEMS_FOLDER).glob("*/step_*.parquet"))
        known = f" There are answers of {', '.join(dict.fromkeys(there))}." if there else ""
        raise ProbeError(
            f"{path}: no answers to a suite's items lie in {root / ITEMS_FOLDER}.{known} A run that is probed writes "
            f"them, and so does `python -m probes score PATH out=FOLDER`."
        )
    return found


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
        plan_hash, suite, step = metadata["plan_hash"], metadata["suite"], int(metadata["step"])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ProbeError(f"Items {path} cannot be read: {type(error).__name__}: {error}.") from error
    tasks = tuple(dict.fromkeys(names.tolist()))
    numbers = {name: number for number, name in enumerate(tasks)}
    table = RequestTable(
        task_R=np.array([numbers[name] for name in names.tolist()], np.int32),
        **{f"{name}_R": columns[name] for name in COLUMNS if name not in ("log_likelihood", "is_greedy", "num_tokens")},
        span_pairs=np.zeros(0, np.int64),
        span_offsets_R1=np.concatenate([[0], np.cumsum(columns["num_tokens"], dtype=np.int64)]),
    )
    return Items(suite, step, tasks, plan_hash, table, columns["log_likelihood"], columns["is_greedy"])


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
    found, known = [], set()
    for name in first.tasks if task is None else [task]:
        values = [items.values(name) for items in (first, second)]
        known |= set(values[0])
        if metric in values[0]:
            found.append([one[metric] for one in values])
    if not found:
        raise ProbeError(f"metric={metric!r} is not among the items' metrics. Known: {', '.join(sorted(known))}.")
    first_I, second_I = (np.concatenate(parts) for parts in zip(*found, strict=True))
    means, difference, stderr = (float(np.mean(first_I)), float(np.mean(second_I))), second_I - first_I, None
    if len(difference) > 1:
        stderr = float(np.std(difference, ddof=1) / math.sqrt(len(difference)))
    return PairedDifference(*means, float(np.mean(difference)), stderr, len(difference))


def _values(items: Items, task: int) -> dict[str, np.ndarray]:
    """Accuracies and continuous metrics of a task's items; for text without answers its bits per byte."""
    table, scores = items.table, items.log_likelihood_R
    values = item_values(table, task, scores)
    choices = np.flatnonzero((table.task_R == task) & table.is_choice_R)
    if len(choices):
        starts, counts = item_starts(table.item_R[choices])
        if (counts == 1).all():
            values["acc"] = items.is_greedy_R[choices].astype(np.float64)
        else:
            values["acc"] = first_right(table, choices, scores[choices])
            by_char = scores[choices] / table.num_chars_R[choices]
            values["acc_norm"] = first_right(table, choices, by_char)
    windows = np.flatnonzero((table.task_R == task) & ~table.is_choice_R & ~table.is_whole_R)
    if len(windows) and not len(choices):
        starts, _ = item_starts(table.item_R[windows])
        bits = -np.add.reduceat(scores[windows], starts) * math.log2(math.e)
        num_bytes = np.add.reduceat(table.num_bytes_R[windows], starts)
        values["bits_per_byte"] = bits / num_bytes
    return values
