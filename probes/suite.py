"""Which tasks a run is probed with: suites of `configs/probes`, read strictly.

A suite lists lm-eval task names, each with the domain it counts towards. Every problem of a file is reported
at once. Whether a task exists is for `probes.harness` to say: this file needs no lm-eval.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.config.nearest import did_you_mean
from pretrain.config.probe import LIMIT, is_limit
from pretrain.errors import ProbeError

SUITE_FOLDER = Path(__file__).parents[1] / "configs" / "probes"
MEAN_TASK = "mean"
"""Task name of a domain's mean in measurements; no task may bear it."""

_SUITE_KEYS = ("description", "tasks")
_TASK_KEYS = ("task", "domain", "num_fewshot", "limit", "ppl", "generate", "fast")
_FAST = "-fast"


Limit = int | float
"""Items of a task, or below 1 a share of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One line of a suite.

    Attributes:
        task: lm-eval name of a task, group or tag.
        domain: domain its metrics are averaged under; also a part of metric names, so without `/`.
        num_fewshot: examples in the prompt; None is what the task's own definition says (0 if nothing).
        limit: score the first so many items only, or below 1 the first share of them, rounded up; None is all.
        ppl: score prompt and answer as one text, too, as OpenCompass's PPL mode does: `ppl_acc` and `ppl_gold`.
        generate: at milestones have the model write its answers, too, and score them with lm-eval's own metrics.
        fast: items of the fast tier, over all tasks of a group; 0 leaves the line out of it.
        gives_way: tasks that fix 0 examples, or have no prompt, keep none, as with lm-eval's `--num_fewshot`; otherwise
            such a suite is refused. Not written in suites: `Suite.at_shots` sets it.
        sample: score a fixed subset of about so many items; None is all. Not written in suites: `Suite.fast` sets it.
    """

    task: str
    domain: str
    num_fewshot: int | None = None
    limit: Limit | None = None
    ppl: bool = False
    generate: bool = False
    fast: int = 100
    sample: int | None = None
    gives_way: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of tasks.

    Attributes:
        name: stem of the file.
        tasks: in the order of the file; a task may be there several times, each with another number of examples.
    """

    name: str
    tasks: tuple[TaskSpec, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """A name for each line: its task, with `@5shot` where several lines have the task and this one says its number.

        Two lines of one task say different numbers, or one of them none.
        """
        counts = Counter(spec.task for spec in self.tasks)
        return tuple(
            spec.task if counts[spec.task] == 1 or spec.num_fewshot is None else with_shots(spec.task, spec.num_fewshot)
            for spec in self.tasks
        )

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains in order of first appearance."""
        return tuple(dict.fromkeys(spec.domain for spec in self.tasks))

    def at_shots(self, num_fewshot: int) -> Suite:
        """The same tasks, each once, with so many examples in every prompt: lm-eval's `--num_fewshot`."""
        first = {spec.task: spec for spec in reversed(self.tasks)}
        lines = [dataclasses.replace(first[task], num_fewshot=num_fewshot, gives_way=True) for task in first]
        return Suite(self.name, tuple(reversed(lines)))

    def fast(self) -> Suite:
        """The fast tier: the same lines, a fixed subset of the items of each. A suite, and curves, of its own.

        Nothing is generated for it.
        """
        lines = tuple(dataclasses.replace(s, sample=s.fast, generate=False) for s in self.tasks if s.fast)
        if not lines:
            raise ProbeError(f"Suite {self.name} has no fast tier: every line says fast: 0. Give one line some items.")
        return Suite(self.name + _FAST, lines)


def num_limited(total: int, *limits: Limit | None) -> int:
    """Items of a task that are scored under all of these limits; a share is rounded up, as in lm-eval.

    Args:
        total: items that the task has.
        limits: see `TaskSpec.limit`.
    """
    counts = (math.ceil(total * limit) if limit < 1 else int(limit) for limit in limits if limit is not None)
    return min(total, *counts, total)


def with_shots(task: str, num_fewshot: int) -> str:
    """Name of a task that is there at several numbers of examples; -1 examples are those of tasks that differ."""
    return f"{task}@{num_fewshot}shot" if num_fewshot >= 0 else f"{task}@mixed"


def names_with_shots(tasks: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Unambiguous names by task and number of examples: the task's own, unless it is there at several numbers.

    Args:
        tasks: names and numbers of examples of all tasks of a compiled suite. Means of domains keep their name.
    """
    known = dict.fromkeys(tasks)
    counts = Counter(task for task, _ in known)
    return {
        (task, shots): task if counts[task] == 1 or task == MEAN_TASK else with_shots(task, shots)
        for task, shots in known
    }


def is_fast(suite: str) -> bool:
    """Whether measurements under this suite's name are of a fast tier."""
    return suite.endswith(_FAST)


def load_suite(name_or_path: str | Path) -> Suite:
    """Reads a suite.

    Args:
        name_or_path: a name in `configs/probes`, or the path of a YAML file of the same form.

    Raises:
        ProbeError: no such suite, not YAML, or anything wrong in it; names the file and every problem.
    """
    path = _find(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ProbeError(f"Suite {path} cannot be read: {yaml_problem(error, path)}. Correct that file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"Suite {path} cannot be read: {error}") from error
    problems: list[str] = []
    specs = _parse(content, problems)
    if problems:
        raise ProbeError(f"Suite {path} has {len(problems)} problem(s):\n" + "\n".join(f"- {p}" for p in problems))
    return Suite(path.stem, tuple(specs))


def yaml_problem(error: yaml.YAMLError, path: Path | None = None) -> str:
    """File, line and fault of YAML that cannot be read."""
    mark = getattr(error, "problem_mark", None)
    file = path if path is not None else getattr(mark, "name", "a file of the task")
    where = f", line {mark.line + 1}, column {mark.column + 1}," if mark is not None else ""
    return f"{file}{where} is not YAML: {getattr(error, 'problem', None) or error}"


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        raise ProbeError(f"probe.suite={name_or_path}: there is no such file. Give the path of a suite's YAML file.")
    bundled = {file.stem: file for file in SUITE_FOLDER.glob("*.yaml")}
    if path.name in bundled:
        return bundled[path.name]
    raise ProbeError(
        f"probe.suite={name_or_path}: there is no such suite. Known: {', '.join(sorted(bundled))}."
        f"{did_you_mean(path.name, bundled)} Or give the path of a YAML file of that form."
    )


def _parse(content: Any, problems: list[str]) -> list[TaskSpec]:
    if not isinstance(content, dict):
        problems.append("the file is not a mapping. Write a list of tasks under the key `tasks`.")
        return []
    _check_keys(content, _SUITE_KEYS, "", problems)
    entries = content.get("tasks")
    if not isinstance(entries, list) or not entries:
        problems.append(f"tasks={entries!r} is not a list of at least one task.")
        return []
    specs: list[TaskSpec] = []
    for index, entry in enumerate(entries):
        spec = _parse_task(entry, f"tasks[{index}]", problems)
        if spec is not None and (spec.task, spec.num_fewshot) in {(one.task, one.num_fewshot) for one in specs}:
            problems.append(
                f"tasks[{index}].task={spec.task!r} is listed before with num_fewshot={spec.num_fewshot}. Keep one of "
                f"the two, or give them different numbers of examples."
            )
        elif spec is not None:
            specs.append(spec)
    return specs


def _parse_task(entry: Any, where: str, problems: list[str]) -> TaskSpec | None:
    if not isinstance(entry, dict):
        problems.append(f"{where}={entry!r} is not a mapping. Write task and domain.")
        return None
    before = len(problems)
    _check_keys(entry, _TASK_KEYS, where + ".", problems)
    for key in ("task", "domain"):
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip():
            problems.append(f"{where}.{key}={value!r} is missing or not a name.")
        elif key == "domain" and "/" in value:
            problems.append(f"{where}.domain={value!r} holds a '/', which separates parts of metric names.")
        elif key == "task" and value == MEAN_TASK:
            problems.append(f"{where}.task={value!r} is the name of a domain's mean. Rename the task.")
    if entry.get("limit") is not None and not is_limit(entry["limit"]):
        problems.append(f"{where}.limit={entry['limit']!r} is not {LIMIT}.")
    for key, minimum in (("num_fewshot", 0), ("fast", 0)):
        value = entry.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < minimum):
            problems.append(f"{where}.{key}={value!r} is not a whole number of at least {minimum}.")
    flags = [key for key in ("ppl", "generate") if not isinstance(entry.get(key, False), bool)]
    problems.extend(f"{where}.{key}={entry[key]!r} is neither true nor false." for key in flags)
    given = {key: value for key, value in entry.items() if value is not None}
    return TaskSpec(**given) if len(problems) == before else None


def _check_keys(mapping: dict[Any, Any], allowed: tuple[str, ...], where: str, problems: list[str]) -> None:
    unknown = [str(key) for key in mapping if key not in allowed]
    known = ", ".join(allowed)
    problems.extend(f"{where}{key} is not a known key.{did_you_mean(key, allowed)} Known: {known}." for key in unknown)
