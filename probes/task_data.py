"""Where a task that is being built has its data from: a folder, a plan, or what lm-eval or its class would do.

Imports lm-eval (lazily). Definitions in YAML name their splits; tasks that are Python classes read what they like, by
a `download` that may be their own, so they are answered where they ask `datasets.load_dataset`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import ProbeError
from probes.items import is_class_task
from probes.local_data import MissingSplitError, find_splits, missing_split, read_split, read_splits

DataSource = Callable[["Building"], None]
"""Gives a task that is being built (its configuration is read) its data set."""


@dataclass(frozen=True, slots=True)
class Building:
    """A task of lm-eval's that is being built and asks for its data.

    Attributes:
        task: lm-eval's Task, without data.
        name: its name; the configuration of a task that is a Python class does not have it yet.
        download: what lm-eval, or the task's own class, would do for the data.
    """

    task: Any
    name: str
    download: Callable[[], None]

    @property
    def data_set(self) -> tuple[str | None, str | None]:
        """Path and name of the data set, as the hub has them: of the definition, or of the class."""
        return self.task.DATASET_PATH, self.task.DATASET_NAME


@contextlib.contextmanager
def data_from(source: DataSource) -> Iterator[list[Building]]:
    """Has tasks that are built meanwhile, those of groups too, ask `source` for their data.

    Gives a list that holds the task that asked last, for as long as it is being built. A class may have a `download` of
    its own, so each task that is built gets ours meanwhile.
    """
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.tasks._factory import TaskFactory

    names: list[str] = []
    asked: list[Building] = []

    def asking(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def build(task: Any, *arguments: Any, **options: Any) -> None:
            own = task.download

            def download(*given: Any, **named: Any) -> None:
                name = getattr(getattr(task, "_config", None), "task", None) or names[-1]
                asked[:] = [Building(task, name, functools.partial(own, *given, **named))]
                source(asked[0])

            task.download = download
            original(task, *arguments, **options)
            del task.download
            asked.clear()

        return build

    def build_task(factory: Any, entry: Any, overrides: Any) -> Any:
        names.append(entry.name)
        try:
            return original_build(factory, entry, overrides)
        finally:
            names.pop()

    originals = {owner: owner.__init__ for owner in (ConfigurableTask, Task)}
    original_build = TaskFactory._build_task
    for owner, original in originals.items():
        owner.__init__ = asking(original)
    TaskFactory._build_task = build_task
    try:
        yield asked
    finally:
        TaskFactory._build_task = original_build
        for owner, original in originals.items():
            owner.__init__ = original


def data_from_folder(data_dir: str | Path | None) -> DataSource:
    """Data sets of `data_dir`, where they are there; see `probes.local_data` for its layout.

    Raises:
        ProbeError: there is no such folder.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ProbeError(f"probe.data_dir={data_dir}: there is no such folder. Give a folder of data sets.")

    def give(building: Building) -> None:
        files = find_splits(data_dir, *building.data_set) if data_dir is not None else {}
        if not files or has_own_data(building):
            building.download()
        elif is_class_task(building.task):
            _give_class(building, files)
        else:
            _give_splits(building, files)

    return give


def has_own_data(building: Building) -> bool:
    """Whether a task's data come from a function of its own."""
    return not is_class_task(building.task) and callable(building.task.config.custom_dataset)


def _give_splits(building: Building, files: dict[str, Path]) -> None:
    """The splits that a task's definition names."""
    task = building.task
    evaluated, shots = evaluated_split(task.config), fewshot_split(task.config)
    if evaluated not in files:
        raise missing_split(building.name, str(evaluated), files)
    task.dataset = {split: read_split(files[split]) for split in files if split in (evaluated, shots)}
    if shots is not None and shots not in files:
        _without_examples(task, missing_split(building.name, shots, files))


def _give_class(building: Building, files: dict[str, Path]) -> None:
    """All splits, as what the class's own download gets from `load_dataset`; what it makes of them is for it to say."""
    task, original = building.task, building.task.fewshot_docs
    answered(building.download, lambda *_, **__: read_splits(building.name, files))

    def fewshot_docs() -> Any:
        try:
            return original()
        except MissingSplitError as error:
            _without_examples(task, error)
            return None

    task.fewshot_docs = fewshot_docs


def _without_examples(task: Any, reason: MissingSplitError) -> None:
    """Examples are needed only where the suite asks for them, see `need_examples`."""
    task.fewshot_docs = lambda: None
    task.lacks_examples = reason


def answered(download: Callable[[], None], answer: Callable[..., Any]) -> None:
    """Runs a task's own download, with an answer to what it asks `datasets.load_dataset` for."""
    import datasets

    original = datasets.load_dataset
    function: Any = download
    while isinstance(function, functools.partial):
        function = function.func
    places = [vars(datasets), function.__globals__]  # task files also import it by its name
    known = [(place, name) for place in places for name, value in place.items() if value is original]
    for place, name in known:
        place[name] = answer
    try:
        download()
    finally:
        for place, name in known:
            place[name] = original


def need_examples(task: Any) -> None:
    """Refuses a task whose number of examples is set and that needs those of a split that its folder has not.

    Raises:
        ProbeError: names the split and the folder.
    """
    wanted = task.get_config("num_fewshot")
    reason = getattr(task, "lacks_examples", None)
    if wanted and reason is not None:
        raise ProbeError(
            f"Task {task.task_name} draws its {wanted} examples from split {reason.split!r}, which "
            f"{reason.folder} has not. Add the file, or set num_fewshot: 0 in the suite."
        )


def evaluated_split(config: Any) -> str | None:
    """The split whose items lm-eval scores."""
    return config.test_split or config.validation_split


def fewshot_split(config: Any) -> str | None:
    """The split that lm-eval draws examples from; None where the definition itself has them."""
    if config.fewshot_config.split is not None:
        return config.fewshot_config.split
    if config.fewshot_config.samples is not None:
        return None
    return config.training_split or config.validation_split or config.test_split
