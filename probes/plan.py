"""The compiled plan of a suite: packed rows, what each request belongs to, and a hash that names the curve.

Compiled once (rank 0, at start), stored in the run directory, loaded by every rank; nothing of lm-eval and no
pickle is needed to read it. Tokens are merged and packed by `probes.trie` and `probes.pack`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.durable import replacing_folder
from pretrain.engine.base import PackedRow, PackedRows
from pretrain.errors import ProbeError
from pretrain.places import names_besides, what_is
from probes.items import StoredSuite
from probes.pack import pack
from probes.request import ProbeTokenizer, SuiteRequests, TaskFacts
from probes.suite import Limit, Suite, names_with_shots

PLAN_FORMAT = 4
"""Raised when the files or the meaning of packed rows change; a part of the plan hash."""

_BINARIES = ("plan.npz", "items.json.gz")
_ROW_NUMBERS = ("prefix", "num_blocks", "block_length", "num_real_tokens")
_ROW_ARRAYS = ("tokens_S", "positions_S", "ends_S", "wanted_W", "pair_wanted_P", "pair_target_P", "pair_id_P")
_TABLE_ARRAYS = (
    "task_R", "item_R", "choice_R", "is_choice_R", "is_gold_R", "is_whole_R", "num_chars_R", "num_bytes_R",
    "span_pairs", "span_offsets_R1",
)  # fmt: skip


@dataclass(slots=True)
class RequestTable:
    """Requests as columns, ordered by task and item; see `probes.request.Request`.

    Attributes:
        task_R: int32, index into `Plan.tasks`.
        item_R: int32, number of the item in its task.
        choice_R: int32, number of the request in its item.
        is_choice_R: bool, one of the item's answers.
        is_gold_R: bool, a right answer of the item.
        is_whole_R: bool, prompt and answer as one text; none of lm-eval's requests.
        num_chars_R: int32, characters of the continuation without leading white space.
        num_bytes_R: int32, the same in UTF-8 bytes.
        span_pairs: int64, pair ids of all requests' continuations one after the other.
        span_offsets_R1: int64 [requests + 1], where each request's part of `span_pairs` starts.
    """

    task_R: np.ndarray
    item_R: np.ndarray
    choice_R: np.ndarray
    is_choice_R: np.ndarray
    is_gold_R: np.ndarray
    is_whole_R: np.ndarray
    num_chars_R: np.ndarray
    num_bytes_R: np.ndarray
    span_pairs: np.ndarray
    span_offsets_R1: np.ndarray

    @property
    def num_tokens_R(self) -> np.ndarray:
        """int64, tokens of each continuation."""
        return np.diff(self.span_offsets_R1)


@dataclass(slots=True)
class Plan:
    """Everything to score a suite with.

    Attributes:
        suite: name of the suite.
        plan_hash: names task definitions, items, prompts, tokens, tokenizer and packing; 16 hexadecimal digits.
        tasks: facts of the tasks.
        rows: what the scorer gets.
        table: what each request belongs to.
        stats: sizes, see `probes.pack.Packing.stats`.
        skipped: a sentence for each item, or reference answer alone, that is left out.
        stored: what metrics need of the items: see `probes.harness.restore_harness`.
        tokenizer: fingerprint of the tokenizer.
        settings: how it was packed.
    """

    suite: str
    plan_hash: str
    tasks: list[TaskFacts]
    rows: PackedRows
    table: RequestTable
    stats: dict[str, float]
    skipped: list[str]
    stored: StoredSuite
    tokenizer: str
    settings: PlanSettings

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, padding included: what a scoring pass computes."""
        return sum(len(row.tokens_S) for row in self.rows.rows)

    @property
    def names(self) -> list[str]:
        """A name of its own for each task: lm-eval's, with `@5shot` where the plan has the task more than once."""
        shown = names_with_shots((task.name, task.num_fewshot) for task in self.tasks)
        return [shown[task.name, task.num_fewshot] for task in self.tasks]

    def chance(self) -> dict[str, float]:
        """Accuracy of guessing by task: the mean over items of right answers / choices, one if none is known.

        Tasks whose items have a single answer, which nobody guesses, are left out. A group has that of its items.
        """
        levels = {self.tasks[index].name: level for index, level in self.chance_of_tasks().items()}
        of_groups = {}
        for group in self.stored.groups:
            members = [self.tasks[index] for index in group.members]
            if all(task.name in levels for task in members):
                weights = [task.num_items if group.by_size("acc") else 1 for task in members]
                of_groups[group.name] = float(np.average([levels[task.name] for task in members], weights=weights))
        return levels | of_groups

    def describe(self) -> dict[str, Any]:
        """The plan in a few figures: the fields of the event `probe_plan`, in training and beside it."""
        skipped = self.skipped[:20] + ([f"and {len(self.skipped) - 20} more"] if len(self.skipped) > 20 else [])
        return {
            "suite": self.suite,
            "plan_hash": self.plan_hash,
            **self.stats,
            "chance": self.chance(),
            "not_computed": {task.name: task.not_computed for task in self.tasks if task.not_computed},
            "items_without_gold": {task.name: task.num_without_gold for task in self.tasks if task.num_without_gold},
            "skipped": skipped,
        }

    def chance_of_tasks(self) -> dict[int, float]:
        """The same of single tasks, by index."""
        table, levels = self.table, {}
        for index in range(len(self.tasks)):
            choices = (table.task_R == index) & table.is_choice_R
            if choices.any():
                _, inverse, counts = np.unique(table.item_R[choices], return_inverse=True, return_counts=True)
                right = np.maximum(1, np.bincount(inverse, weights=table.is_gold_R[choices]))
                if counts.max() > 1:
                    levels[index] = float(np.mean(right / counts))
        return levels

    def differences(self, *, suite: Suite, limit: Limit | None, tokenizer: str, settings: PlanSettings) -> list[str]:
        """Where the plan differs from what is wanted, one phrase each; empty if it may be used.

        Args:
            suite: the suite wanted.
            limit: items per task at most.
            tokenizer: fingerprint.
            settings: context length and packing.
        """
        found = self.stored.differences(StoredSuite(suite.name, suite.tasks, limit, ()))
        if self.tokenizer != tokenizer:
            found.append(f"tokenizer {self.tokenizer}, now {tokenizer}")
        for field in dataclasses.fields(PlanSettings):
            old, new = getattr(self.settings, field.name), getattr(settings, field.name)
            if old != new:
                found.append(f"{field.name} {old}, now {new}")
        return found

    def save(self, folder: Path) -> None:
        """Writes the plan; the folder appears complete or not at all, and replaces an earlier plan.

        Raises:
            ProbeError: it cannot be written, or the folder holds anything that is not of a plan.
        """
        require_replaceable(folder)
        arrays = {name: getattr(self.table, name) for name in _TABLE_ARRAYS} | _flatten(self.rows.rows)
        body: dict[str, Any] = {
            "format": PLAN_FORMAT,
            "suite": self.suite,
            "plan_hash": self.plan_hash,
            "tasks": [dataclasses.asdict(task) for task in self.tasks],
            "num_pairs": self.rows.num_pairs,
            "rows_digest": self.rows.digest,
            "stats": self.stats,
            "skipped": self.skipped,
            "tokenizer": self.tokenizer,
            "settings": dataclasses.asdict(self.settings),
        }
        try:
            with replacing_folder(folder) as temporary:
                np.savez_compressed(temporary / "plan.npz", allow_pickle=False, **arrays)
                (temporary / "items.json.gz").write_bytes(self.stored.to_bytes())
                for name in _BINARIES:
                    body[f"{name}_sha256"] = _sha256((temporary / name).read_bytes())
                document = {"sha256": _sha256(_canonical(body)), "plan": body}
                (temporary / "plan.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        except OSError as error:
            raise ProbeError(f"The plan of suite {self.suite} cannot be written to {folder}: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Reads a plan that `save` wrote.

        Raises:
            ProbeError: missing, damaged, or of another format.
        """
        if not (folder / "plan.json").is_file():
            raise ProbeError(
                f"{folder} is not a compiled suite: it {what_is(folder)}. Name a folder that `python -m probes "
                "compile` wrote."
            )
        try:
            document = json.loads((folder / "plan.json").read_bytes())
            body = document["plan"]
            if document["sha256"] != _sha256(_canonical(body)):
                raise ValueError("plan.json does not agree with its checksum")
            if body["format"] != PLAN_FORMAT:
                raise ValueError(f"it has format {body['format']}, this version reads {PLAN_FORMAT}")
            content = {name: (folder / name).read_bytes() for name in _BINARIES}
            for name in _BINARIES:
                if body[f"{name}_sha256"] != _sha256(content[name]):
                    raise ValueError(f"{name} does not agree with its checksum")
            with np.load(io.BytesIO(content["plan.npz"]), allow_pickle=False) as arrays:
                table = RequestTable(**{name: arrays[name] for name in _TABLE_ARRAYS})
                rows = PackedRows(_unflatten(arrays), body["num_pairs"], body["rows_digest"])
            tasks = [TaskFacts(**task) for task in body["tasks"]]
            stored = StoredSuite.from_bytes(content["items.json.gz"])
            settings = PlanSettings(**body["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProbeError(
                f"The compiled suite {folder} cannot be read: {error}. Compile it again with `python -m probes "
                "compile`, which replaces the folder."
            ) from error
        facts = (body["stats"], body["skipped"], stored, body["tokenizer"], settings)
        return cls(body["suite"], body["plan_hash"], tasks, rows, table, *facts)


def require_replaceable(folder: Path) -> None:
    """Makes sure that nothing but an earlier plan is replaced by a plan that is written to a folder.

    Raises:
        ProbeError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir() or names_besides(folder, ("plan.json", *_BINARIES)):
        raise ProbeError(
            f"{folder} would be replaced by a compiled suite, but it {what_is(folder)}. Name a folder that does not "
            "exist, or that of an earlier compiled suite."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """What besides the suite decides how it is packed.

    Attributes:
        max_length: longest model input in tokens.
        add_bos: `<s>` stands before every prompt.
        tokens_per_row: token budget of a row.
        multiple: row lengths are multiples of it. The same in every layout, so that all share one plan and curve.
    """

    max_length: int
    add_bos: bool
    tokens_per_row: int = 4096
    multiple: int = 16


def hash_plan(requests: SuiteRequests, tokenizer: ProbeTokenizer, settings: PlanSettings) -> str:
    """The plan hash, without packing anything: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    facts = [dataclasses.asdict(task) for task in requests.tasks]
    head: list[Any] = [PLAN_FORMAT, facts, requests.content_digest, tokenizer.fingerprint]
    head += [dataclasses.asdict(settings), [group.to_json() for group in requests.stored.groups]]
    digest.update(_canonical(head))
    for request in requests.requests:
        digest.update(np.array([len(request.context), *request.context, *request.continuation], np.int64).tobytes())
    return digest.hexdigest()[:16]


def compile_plan(requests: SuiteRequests, tokenizer: ProbeTokenizer, settings: PlanSettings) -> Plan:
    """Packs a suite's requests; deterministic.

    Args:
        requests: see `probes.harness.Harness.capture`.
        tokenizer: the tokenizer they were made with.
        settings: context length and packing.
    """
    every = requests.requests
    packing = pack(
        every,
        max_length=settings.max_length,
        tokens_per_row=settings.tokens_per_row,
        multiple=settings.multiple,
    )
    table = RequestTable(
        task_R=np.array([request.task for request in every], np.int32),
        item_R=np.array([request.item for request in every], np.int32),
        choice_R=np.array([request.choice for request in every], np.int32),
        is_choice_R=np.array([request.is_choice for request in every], bool),
        is_gold_R=np.array([request.is_gold for request in every], bool),
        is_whole_R=np.array([request.is_whole for request in every], bool),
        num_chars_R=np.array([request.num_chars for request in every], np.int32),
        num_bytes_R=np.array([request.num_bytes for request in every], np.int32),
        span_pairs=packing.span_pairs,
        span_offsets_R1=packing.span_offsets_R1,
    )
    plan_hash = hash_plan(requests, tokenizer, settings)
    stats = {**packing.stats, "skipped_items": len(requests.skipped)}
    tasks, skipped = list(requests.tasks), list(requests.skipped)
    facts = (stats, skipped, requests.stored, tokenizer.fingerprint, settings)
    return Plan(requests.suite, plan_hash, tasks, packing.rows, table, *facts)


def _flatten(rows: list[PackedRow]) -> dict[str, np.ndarray]:
    flat = {"row_numbers": np.array([[getattr(row, name) for name in _ROW_NUMBERS] for row in rows], np.int64)}
    for name in _ROW_ARRAYS:
        parts = [getattr(row, name) for row in rows]
        flat[f"row_{name}"] = np.concatenate(parts)
        flat[f"row_{name}_lengths"] = np.array([len(part) for part in parts], np.int64)
    return flat


def _unflatten(arrays: Any) -> list[PackedRow]:
    columns = []
    for name in _ROW_ARRAYS:
        ends = np.cumsum(arrays[f"row_{name}_lengths"])[:-1]
        columns.append(np.split(arrays[f"row_{name}"], ends))
    rows = []
    for numbers, *parts in zip(arrays["row_numbers"], *columns, strict=True):
        prefix, num_blocks, block_length, num_real_tokens = map(int, numbers)
        tokens_S, positions_S, ends_S, *others = parts
        rows.append(
            PackedRow(prefix, num_blocks, block_length, tokens_S, positions_S, ends_S, num_real_tokens, *others)
        )
    return rows


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
