"""What a plan keeps of a suite's items, so that metrics need no data set: documents, and definitions to compare.

Works on lm-eval's objects without importing lm-eval. A task is restored by building it from its definition,
found by name as ever, with the stored documents in place of its data set.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import ProbeError
from probes.groups import TaskGroup
from probes.suite import Limit, Suite, TaskSpec

_NOT_DEFINING = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "tag", "task_alias", "num_fewshot")
"""Keys of a task's definition that say where its data lie or what the suite decides."""


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task's items, as lm-eval's metrics need them.

    Attributes:
        name: lm-eval's name.
        definition: see `definition_digest`.
        num_fewshot: examples in the prompts.
        fields: names of the data set's columns.
        first: the data set's first item, which tells lm-eval whether the task has several right answers.
        documents: items that are scored, by lm-eval's doc_id.
        instances: (doc_id, idx, request_type, repeats) of each of lm-eval's requests, in order.
        prompts: token ids of the prompt of each of them, where answers are generated; else empty.
        until: strings that end an answer.
        max_new_tokens: of an answer at most.
    """

    name: str
    definition: str
    num_fewshot: int
    fields: list[str]
    first: Any
    documents: dict[int, Any]
    instances: list[tuple[int, int, str, int]]
    prompts: list[list[int]] = dataclasses.field(default_factory=list)
    until: list[str] = dataclasses.field(default_factory=list)
    max_new_tokens: int = 0


_TASK_FIELDS = dataclasses.fields(StoredTask)


@dataclass(frozen=True, slots=True)
class StoredSuite:
    """A suite as it was compiled.

    Attributes:
        name: of the suite.
        specs: its lines.
        limit: items per task at most, beside the suite's own limits.
        tasks: its tasks, groups expanded.
        groups: what its groups' scores are made of.
    """

    name: str
    specs: tuple[TaskSpec, ...]
    limit: Limit | None
    tasks: tuple[StoredTask, ...]
    groups: tuple[TaskGroup, ...] = ()

    def to_bytes(self) -> bytes:
        """Compressed JSON; the same bytes for the same suite."""
        values = {
            "name": self.name,
            "specs": [dataclasses.asdict(spec) for spec in self.specs],
            "limit": self.limit,
            "tasks": [{field.name: getattr(task, field.name) for field in _TASK_FIELDS} for task in self.tasks],
            "groups": [group.to_json() for group in self.groups],
        }
        return gzip.compress(json.dumps(values).encode(), compresslevel=6, mtime=0)

    @classmethod
    def from_bytes(cls, content: bytes) -> StoredSuite:
        """The inverse of `to_bytes`.

        Raises:
            ValueError, TypeError, KeyError, OSError: it is none.
        """
        values = json.loads(gzip.decompress(content))
        tasks = []
        for task in values["tasks"]:
            documents = {int(number): document for number, document in task["documents"].items()}
            instances = [(item, number, str(kind), repeats) for item, number, kind, repeats in task["instances"]]
            tasks.append(StoredTask(**{**task, "documents": documents, "instances": instances}))
        specs = tuple(TaskSpec(**spec) for spec in values["specs"])
        groups = tuple(map(TaskGroup.from_json, values["groups"]))
        return cls(values["name"], specs, values["limit"], tuple(tasks), groups)

    def differences(self, other: StoredSuite) -> list[str]:
        """Where two suites' lines and limits differ, one phrase each; their items are not compared."""
        found = []
        if self.name != other.name:
            found.append(f"suite {self.name}, now {other.name}")
        mine, theirs = (dict(zip(Suite(s.name, s.specs).lines, s.specs, strict=True)) for s in (self, other))
        for task in dict.fromkeys([*mine, *theirs]):
            before, now = mine.get(task), theirs.get(task)
            if before is None or now is None:
                found.append(f"task {task} {'is new' if before is None else 'is no longer in the suite'}")
                continue
            for field in dataclasses.fields(TaskSpec):
                old, new = getattr(before, field.name), getattr(now, field.name)
                if old != new:
                    found.append(f"{field.name} of task {task} {old}, now {new}")
        if not found and list(mine) != list(theirs):
            found.append("the order of tasks")
        if self.limit != other.limit:
            found.append(f"limit {self.limit}, now {other.limit}")
        return found


def store_task(task: Any, name: str) -> StoredTask:
    """What a plan keeps of a task whose requests are built and judged.

    Args:
        task: lm-eval's Task.
        name: lm-eval's name of it.

    Raises:
        ProbeError: an item holds something else than text, numbers, lists and mappings.
    """
    documents = {instance.doc_id: instance.doc for instance in task.instances}
    every = task.eval_docs if getattr(task, "task_docs", None) is None else task.task_docs
    first = next(iter(every))
    for number, document in [(0, first), *documents.items()]:
        problem = _not_plain(document)
        if problem:
            raise ProbeError(
                f"Task {name}, item {number}: {problem}, which a plan cannot hold. Let the task's process_docs turn it "
                f"into text or numbers, or remove the task from the suite."
            )
    return StoredTask(
        name=name,
        definition=definition_digest(task),
        num_fewshot=int(task.get_config("num_fewshot") or 0),
        fields=list(getattr(task, "features", [])),
        first=first,
        documents=documents,
        instances=[(i.doc_id, i.idx, str(i.request_type), int(i.repeats or 1)) for i in task.instances],
    )


def give_items(task: Any, stored: StoredTask) -> None:
    """Gives a task that is being built its stored items in place of a data set.

    Args:
        task: lm-eval's Task, its configuration read, no data yet.
        stored: what the plan has of it.

    Raises:
        ProbeError: the task's definition is not the one that was compiled.
    """
    if definition_digest(task) != stored.definition:
        raise ProbeError(f"Task {stored.name} has changed since the plan was compiled; compile the plan again.")
    items = _Items([stored.first])
    items.features = dict.fromkeys(stored.fields)
    task.dataset = {}
    task.has_test_docs = lambda: True
    task.test_docs = lambda: items
    task.fewshot_docs = lambda: None
    task.is_restored = True


class _Items(list):
    """What lm-eval asks of a data set when it builds a task."""

    features: dict[str, None]


def definition_digest(task: Any) -> str:
    """Hash of a task's definition and of the source files of its functions and class; not of where its data lie."""
    config = task.config
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {key: _plain(value) for key, value in values.items() if key not in _NOT_DEFINING}
    described = [str(task.VERSION), kept]
    if is_class_task(task):  # it gets its name only when it is built
        described = [str(task.VERSION), {**kept, "task": None}, _plain(type(task))]
    text = json.dumps(described, sort_keys=True, default=repr)
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()[:16]


def is_class_task(task: Any) -> bool:
    """Whether a task is a Python class of its own, not a definition in YAML alone."""
    return type(task).__name__ != "ConfigurableTask"


def _plain(value: Any) -> Any:
    """A definition's value as JSON; a function by its name and its file's content."""
    if isinstance(value, functools.partial):
        return ["partial", _plain(value.func), _plain(value.args), _plain(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {key: _plain(inner) for key, inner in fields.items()}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if callable(value):
        return [getattr(value, "__qualname__", type(value).__qualname__), _source_digest(value)]
    return value


def _source_digest(function: Any) -> str:
    try:
        code = inspect.unwrap(function)
        path = inspect.getsourcefile(code if inspect.isroutine(code) or inspect.isclass(code) else type(code))
        return hashlib.sha256(Path(path or "").read_bytes()).hexdigest()
    except (OSError, TypeError, ValueError):
        return ""  # built in: its name is all there is


def _not_plain(value: Any, where: str = "") -> str:
    """What of an item JSON would not give back exactly; empty if nothing."""
    if isinstance(value, dict):
        keys = [key for key in value if type(key) is not str]
        if keys:
            return f"{where or 'it'} has the key {keys[0]!r}"
        problems = (_not_plain(inner, f"{where}.{key}" if where else f"field {key!r}") for key, inner in value.items())
        return next(filter(None, problems), "")
    if type(value) is list:
        return next(filter(None, (_not_plain(inner, where) for inner in value)), "")
    if value is None or type(value) in (str, int, float, bool):
        return ""
    return f"{where or 'it'} is a {type(value).__name__}"
