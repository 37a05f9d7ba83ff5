"""Looks tasks up by name in lm-eval's indexes and builds them.

Imports lm-eval (lazily). Where their data come from is for `probes.task_data` to say.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from probes.execute import code_eval
from probes.suite import TaskSpec
from probes.task_data import DataSource, data_from

BUNDLED_TASKS = Path(__file__).parent / "tasks"

_FILE_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Values of `dataset_path` with which `datasets` reads local files."""


class Loaded(NamedTuple):
    """lm-eval's objects for one line of a suite.

    Attributes:
        tasks: Tasks.
        groups: Groups, the outermost first.
    """

    tasks: list[Any]
    groups: list[Any]


class TaskFinder:
    """Finds and builds tasks.

    A name is looked up in `task_paths` (the first folder that has it), then among the bundled tasks, then in
    lm-eval's own index.

    Args:
        task_paths: folders with lm-eval task YAML files.
        source: where tasks have their data from.

    Raises:
        ProbeError: a folder that is not there.
    """

    def __init__(self, task_paths: Sequence[str | Path], source: DataSource) -> None:
        from lm_eval.tasks import TaskManager

        for folder in task_paths:
            if not Path(folder).is_dir():
                raise ProbeError(
                    f"probe.task_paths={folder}: there is no such folder. Give folders of task YAML files."
                )
        folders = [BUNDLED_TASKS, *reversed([Path(path) for path in task_paths])]  # lm-eval: the last one wins
        self._local = TaskManager(include_path=folders, include_defaults=False)
        self._source = source

    def load(self, spec: TaskSpec) -> Loaded:
        """What a line of a suite brings, data read, prompts not yet built.

        Raises:
            ProbeError: an unknown task, or one that cannot be built.
        """
        manager, entry = self._find(spec.task)
        if entry is None:
            known = [*self._local.all_subtasks, *manager.all_tasks]
            raise ProbeError(
                f"Task {spec.task!r} (domain {spec.domain}) is unknown.{did_you_mean(spec.task, known)} Tasks are "
                f"looked up in probe.task_paths, among the bundled ones in {BUNDLED_TASKS}, and in lm-eval's own."
            )
        try:
            with (
                tempfile.TemporaryDirectory(prefix="fineline-tasks-") as cache,
                quiet(),
                data_from(self._source),
                _no_programs_run(),
            ):
                wanted: Any = spec.task
                if entry.kind.name == "TASK":
                    wanted = _task_config(entry.yaml_path, cache)
                elif manager is self._local and spec.task not in manager.task_index:
                    wanted = str(entry.yaml_path)
                found = manager.load([wanted])
                return Loaded(list(found["tasks"].values()), list(found["groups"].values()))
        except ProbeError:
            raise
        except Exception as error:  # noqa: BLE001 (task files hold other people's code: it may raise anything)
            raise ProbeError(
                f"Task {spec.task} of {entry.yaml_path} cannot be loaded: {type(error).__name__}: {error}. "
                f"Data sets must be on this machine already: fetch them with `python -m probes prefetch` where there "
                f"is a network and set probe.data_dir, or set HF_DATASETS_OFFLINE=0 and HF_HUB_OFFLINE=0 to let "
                f"lm-eval download them."
            ) from error

    def _find(self, name: str) -> tuple[Any, Any]:
        """Where a name is defined, and by which index it is built; None if nowhere."""
        if name in self._local.task_index:
            return self._local, self._local.task_index[name]
        entry = _builtin_task(name)
        if entry is not None:
            return self._local, entry  # a task stands alone: any index builds it
        return _builtin_manager(), _builtin_manager().task_index.get(name)


_TASK_LINE = re.compile(rb"""^["']?task["']?[ ]*:[ ]*["']?([^"'#\n\[\]]+?)["']?[ ]*(?:#.*)?\r?$""", re.MULTILINE)


def _builtin_task(name: str) -> Any:
    """The entry of one of lm-eval's own tasks, from the one file that says its name; None for all other names.

    Reading all files as text takes a second or two, parsing them for the whole index seventeen.
    """
    from lm_eval.tasks._index import TaskIndex

    for path in _task_lines().get(name.encode(), ()):
        entry = TaskIndex.entry_from_path(path)
        if entry is not None and entry.name == name and entry.kind.name in ("TASK", "PY_TASK"):
            return entry
    return None


@functools.cache
def _task_lines() -> dict[bytes, list[Path]]:
    """lm-eval's own files by the names in their `task:` lines, in the order of its index, where the first one wins."""
    import lm_eval.tasks

    found: dict[bytes, list[Path]] = {}
    for path in sorted(Path(lm_eval.tasks.__file__).parent.glob("**/*.yaml"), key=Path.as_posix):
        for name in _TASK_LINE.findall(path.read_bytes()):
            found.setdefault(name, []).append(path)
    return found


@functools.cache
def _builtin_manager() -> Any:
    """lm-eval's own index: nearly 14,000 files, some 17 seconds of parsing, read once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextlib.contextmanager
def _no_programs_run() -> Iterator[None]:
    """Keeps tasks from fetching the hub's `code_eval` and running a program with it when their code is imported.

    lm-eval's files of HumanEval and MBPP do both at import. What runs later is for `probes.execute` to say. `evaluate`
    itself, which brings torch, is imported only by those who ask for more of it.
    """
    real = sys.modules.get("evaluate")
    stand_in = sys.modules["evaluate"] = _Evaluate(real)
    try:
        yield
    finally:
        del sys.modules["evaluate"]
        if stand_in.real is not None:
            sys.modules["evaluate"] = stand_in.real


class _Evaluate(types.ModuleType):
    """Stands in for `evaluate`; task files may keep it for good."""

    def __init__(self, real: types.ModuleType | None) -> None:
        super().__init__("evaluate")
        self.real = real

    def load(self, path: str, *arguments: Any, **options: Any) -> Any:
        return _CodeEval() if path == "code_eval" else self._imported().load(path, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._imported(), name)

    def _imported(self) -> Any:
        if self.real is None:
            present = sys.modules.pop("evaluate", None)
            self.real = importlib.import_module("evaluate")
            if present is self:
                sys.modules["evaluate"] = self
        return self.real


class _CodeEval:
    """Stands in for `evaluate`'s metric of that name; see `probes.execute` for when programs are run."""

    def compute(
        self, *, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], dict[int, Any]]:
        return code_eval(references, predictions, k), {}


def _task_config(path: Path, cache: str) -> dict[str, Any]:
    """A task's YAML with `${TASK_DIR}` filled in; local files are read into memory and leave no cache behind."""
    from lm_eval.tasks._yaml_loader import load_yaml

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("${TASK_DIR}", str(path.parent.resolve()))
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        return [fill(inner) for inner in value] if isinstance(value, list) else value

    config: dict[str, Any] = fill(load_yaml(path))
    if config.get("dataset_path") in _FILE_BUILDERS:
        config["dataset_kwargs"] = {**(config.get("dataset_kwargs") or {}), "cache_dir": cache, "keep_in_memory": True}
    return config


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars off the terminal; log records and errors pass."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
