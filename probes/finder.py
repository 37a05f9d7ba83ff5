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

import yaml

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from probes.execute import code_eval
from probes.load_errors import load_error
from probes.local_data import FILE_BUILDERS
from probes.suite import TaskSpec, yaml_problem
from probes.task_data import Building, DataSource, data_from

BUNDLED_TASKS = Path(__file__).parent / "tasks"


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
        self._folders = folders
        self._source = source

    def load(self, spec: TaskSpec) -> Loaded:
        """What a line of a suite brings, data read, prompts not yet built.

        Raises:
            ProbeError: an unknown task, or one that cannot be built.
        """
        self._refuse_unread(spec.task)
        manager, entry = self._find(spec.task)
        if entry is None:
            known = [*self._local.all_subtasks, *manager.all_tasks]
            raise ProbeError(
                f"Task {spec.task!r} (domain {spec.domain}) is unknown.{did_you_mean(spec.task, known)} Tasks are "
                f"looked up in probe.task_paths, among the bundled ones in {BUNDLED_TASKS}, and in lm-eval's own."
                + "".join(f" {problem}." for problem in self._unread.values())
            )
        if manager is self._local:
            self._complete(spec.task, entry)
        asked: list[Building] = []
        try:
            with (
                tempfile.TemporaryDirectory(prefix="fineline-tasks-") as cache,
                quiet(),
                data_from(self._source) as asked,
                _definitions_filled(cache),
                _no_programs_run(),
            ):
                wanted = spec.task if spec.task in manager.task_index else str(entry.yaml_path)
                found = manager.load([wanted])
                return Loaded(list(found["tasks"].values()), list(found["groups"].values()))
        except ProbeError:
            raise
        except Exception as error:  # noqa: BLE001 (task files hold other people's code: it may raise anything)
            raise load_error(spec.task, entry.yaml_path, error, asked[0] if asked else None) from error

    def _refuse_unread(self, name: str) -> None:
        """Refuses a name whose file in `task_paths` cannot be read: another task of the name may not stand in for it.

        Raises:
            ProbeError: names the file and the line.
        """
        for path, problem in self._unread.items():
            if name == path.stem or name.encode() in _NAME_LINE.findall(path.read_bytes()):
                raise ProbeError(f"Task {name} cannot be loaded: {problem}. Correct that file.")

    def _complete(self, group: str, entry: Any) -> None:
        """Looks up what a group of ours lists beyond our own tasks; lm-eval would take such names for definitions.

        Raises:
            ProbeError: a name that is unknown.
        """
        index = self._local.task_index
        for name in _members((entry.cfg or {}).get("task")) if entry.kind.name == "GROUP" else ():
            if name not in index:
                self._refuse_unread(name)
                found = _builtin_task(name) or _builtin_manager().task_index.get(name)
                if found is None:
                    known = did_you_mean(name, self._local.all_subtasks)
                    raise ProbeError(
                        f"Group {group} names the task {name!r}, which is unknown.{known} Correct {entry.yaml_path}."
                    )
                index[name] = found
            self._complete(name, index[name])

    @functools.cached_property
    def _unread(self) -> dict[Path, str]:
        """What is wrong with the files in `task_paths` that lm-eval's index passes over in silence."""
        from lm_eval.tasks._index import TaskIndex
        from lm_eval.tasks._yaml_loader import load_yaml

        indexed = {entry.yaml_path for entry in self._local.task_index.values()}
        found = {}
        for path in (path for folder in self._folders for path in TaskIndex._iter_yaml_files(folder)):
            try:
                if path not in indexed:
                    load_yaml(path, resolve_func=False)
            except yaml.YAMLError as error:
                found[path] = yaml_problem(error)
            except (OSError, ValueError, TypeError, AttributeError) as error:  # an include is missing, or no mapping
                found[path] = f"{path} cannot be read: {type(error).__name__}: {error}"
        return found

    def _find(self, name: str) -> tuple[Any, Any]:
        """Where a name is defined, and by which index it is built; None if nowhere."""
        if name in self._local.task_index:
            return self._local, self._local.task_index[name]
        entry = _builtin_task(name)
        if entry is not None:
            return self._local, entry  # a task stands alone: any index builds it
        return _builtin_manager(), _builtin_manager().task_index.get(name)


_TASK_LINE = re.compile(rb"""^["']?task["']?[ ]*:[ ]*["']?([^"'#\n\[\]]+?)["']?[ ]*(?:#.*)?\r?$""", re.MULTILINE)


_NAME_LINE = re.compile(_TASK_LINE.pattern.replace(b"task", b"(?:task|group)"), re.MULTILINE)


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


@contextlib.contextmanager
def _definitions_filled(cache: str) -> Iterator[None]:
    """Fills `${TASK_DIR}` in definitions; local files are read into memory and leave nothing behind but in `cache`."""
    from lm_eval.tasks._factory import TaskFactory

    original = TaskFactory._load_full_config

    def load(factory: Any, entry: Any, overrides: Any = None) -> dict[str, Any]:
        config: dict[str, Any] = original(factory, entry, overrides)
        if entry.yaml_path is not None:
            config = _filled(config, str(Path(entry.yaml_path).parent.resolve()))
        if config.get("dataset_path") in FILE_BUILDERS:
            given = config.get("dataset_kwargs") or {}
            config["dataset_kwargs"] = {**given, "cache_dir": cache, "keep_in_memory": True}
        return config

    TaskFactory._load_full_config = load
    try:
        yield
    finally:
        TaskFactory._load_full_config = original


def _filled(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return value.replace("${TASK_DIR}", folder)
    if isinstance(value, dict):
        return {key: _filled(inner, folder) for key, inner in value.items()}
    return [_filled(inner, folder) for inner in value] if isinstance(value, list) else value


def _members(listed: Any) -> Iterator[str]:
    """Names of what a group lists, without the tasks that it defines itself."""
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("task"), list):
            yield from _members(item["task"])
        elif isinstance(item, dict) and not {"dataset_path", "custom_dataset"} & set(item):
            yield str(item.get("task") or item.get("group"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars off the terminal; log records and errors pass."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
