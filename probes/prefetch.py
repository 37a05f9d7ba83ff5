"""Fetches the data sets of a suite's tasks from the hub into the folder that `probe.data_dir` names.

Every task is built with what was fetched, so that a suite that has been fetched is known to load.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.durable import replace_file, replacing
from pretrain.errors import ProbeError
from probes.finder import TaskFinder
from probes.items import is_class_task
from probes.local_data import FILE_BUILDERS, dataset_folder, find_splits
from probes.suite import Suite
from probes.task_data import Building, DataSource, answered, data_from_folder, fewshot_split, has_own_data


def prefetch(
    suite: Suite,
    data_dir: Path,
    *,
    task_paths: Sequence[str | Path] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Fetches what is not there yet; each split appears complete or not at all.

    Args:
        suite: the suite.
        data_dir: where data sets are put, and looked for first.
        task_paths: folders with further task files.
        say: told what was written and what was there.

    Raises:
        ProbeError: data sets that cannot be fetched, all of them at once; without a network the first.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProbeError(
            f"data_dir={data_dir} cannot be made: {error}. Choose a folder that can be written."
        ) from error
    finder = TaskFinder(task_paths, _fetching(data_dir, say))
    problems: list[str] = []
    for spec in suite.tasks:
        try:
            finder.load(spec)
        except NoNetworkError:
            raise
        except ProbeError as error:
            problems.append(str(error))
    if problems:
        raise ProbeError(f"{len(problems)} problem(s):\n" + "\n".join(f"- {problem}" for problem in problems))


class NoNetworkError(ProbeError):
    """The hub cannot be reached."""


def _fetching(data_dir: Path, say: Callable[[str], None]) -> DataSource:
    """As `data_from_folder`, but what the folder lacks is fetched first."""
    give = data_from_folder(data_dir)
    seen: set[tuple[str, str | None]] = set()

    def fetch_and_give(building: Building) -> None:
        path, name = building.data_set
        if has_own_data(building) or not path or path in FILE_BUILDERS or Path(path).is_absolute():
            say(f"{building.name}: has data of its own")
            building.download()
            return
        there, folder = find_splits(data_dir, path, name), dataset_folder(data_dir, path, name)
        if not is_class_task(building.task):
            splits = _fetch_missing(building, folder, there)
        else:  # nothing says beforehand which splits it reads
            splits = [] if there else _fetch_class(building, folder)
        if splits:
            say(f"{building.name}: {', '.join(sorted(splits))} of {path} to {folder}")
        elif (path, name) not in seen:
            say(f"{building.name}: {path} is in {folder}")
        seen.add((path, name))
        give(building)

    return fetch_and_give


def _fetch_missing(building: Building, folder: Path, there: Mapping[str, Path]) -> list[str]:
    """Fetches the splits that a task's definition names and the folder lacks; returns their names."""
    config = building.task.config
    wanted = {config.test_split, config.validation_split, fewshot_split(config)} - {None, *there}
    wanted &= _existing(folder) or wanted  # a definition may name splits that do not exist
    if not wanted:
        return []
    options = {key: value for key, value in (config.dataset_kwargs or {}).items() if key != "trust_remote_code"}

    def load(cache: str) -> Any:
        import datasets

        return datasets.load_dataset(
            path=config.dataset_path, name=config.dataset_name, **{**options, "cache_dir": cache}
        )

    return _fetch(building, folder, load, wanted)


def _fetch_class(building: Building, folder: Path) -> list[str]:
    """Fetches all that the class's own download asks `load_dataset` for; returns the names of the splits."""

    def load(cache: str) -> Any:
        import datasets

        original, found = datasets.load_dataset, datasets.DatasetDict()

        def asked(*arguments: Any, **options: Any) -> Any:
            answer = original(*arguments, **{**options, "cache_dir": cache})
            found.update(answer if isinstance(answer, dict) else {str(answer.split): answer})
            return datasets.DatasetDict(answer) if isinstance(answer, dict) else answer

        answered(building.download, asked)
        return found

    return _fetch(building, folder, load, None)


_EXISTING = ".splits.json"
"""Names of all splits of a data set that was fetched."""


def _existing(folder: Path) -> set[str]:
    """The splits that a fetched data set has; empty if that is not known, so that it is fetched again."""
    try:
        return {str(name) for name in json.loads((folder / _EXISTING).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        return set()


def _fetch(building: Building, folder: Path, load: Callable[[str], Any], wanted: set[str] | None) -> list[str]:
    """Writes the wanted splits that the data set has, None is all; returns their names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as cache:
            found = load(cache)
            splits = sorted(set(found) if wanted is None else wanted & set(found))
            for split in splits:
                with replacing(folder / f"{split}.parquet") as temporary:
                    found[split].to_parquet(temporary)
            replace_file(folder / _EXISTING, json.dumps(sorted(found)))
    except Exception as error:  # noqa: BLE001 (datasets and its hub client raise errors of many kinds)
        raise _explained(building, error) from error
    return splits


def _explained(building: Building, error: Exception) -> ProbeError:
    path, name = building.data_set
    what = f"Data set {path}{f' ({name})' if name else ''} of task {building.name} cannot be fetched"
    reason = f"{type(error).__name__}: {error}"
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if any(isinstance(link, ConnectionError) or "Connect" in type(link).__name__ for link in chain) or any(
        "Offline" in type(link).__name__ for link in chain
    ):
        return NoNetworkError(
            f"{what}: the Hugging Face hub cannot be reached ({reason}). Run prefetch where there is a network, with "
            f"HF_HUB_OFFLINE and HF_DATASETS_OFFLINE unset, and copy the folder."
        )
    return ProbeError(
        f"{what}: {reason}. If the data set is gated, accept its terms on the hub and set HF_TOKEN; else put its "
        f"splits into the folder as <split>.parquet or <split>.jsonl."
    )
