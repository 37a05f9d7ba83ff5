"""What is wrong when a task cannot be loaded, in which file and line, and what would help.

Task files hold other people's definitions, code and data, and lm-eval raises whatever those raise. Here that becomes
one sentence. Advice on fetching data sets is given only where data are missing. Works on lm-eval's objects without
importing lm-eval.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pretrain.errors import ProbeError
from probes.local_data import FILE_BUILDERS, open_text
from probes.suite import yaml_problem
from probes.task_data import Building

_FETCH = (
    "Fetch it with `python -m probes prefetch` where there is a network and set probe.data_dir, or set "
    "HF_DATASETS_OFFLINE=0 and HF_HUB_OFFLINE=0 to let lm-eval download it."
)
_NOT_THERE = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "DatasetNotFoundError", "HfHubHTTPError")
"""Names of errors of `datasets` and the hub's client for what is neither in the cache nor to be had."""


def load_error(name: str, file: Path | None, error: Exception, building: Building | None) -> ProbeError:
    """The error to raise in place of one that came up while a task was built.

    Args:
        name: the suite's name of the task or group.
        file: its YAML file; None for a tag.
        error: what lm-eval, the task's files or `datasets` raised.
        building: the task that asked for its data last; None if it came to none.
    """
    if building is not None and building.name not in (name, None):
        name = f"{building.name} of {name}"
    what = f"Task {name}{f' of {file}' if file is not None else ''} cannot be loaded"
    return ProbeError(f"{what}: {_reason(error, building)}")


def _reason(error: Exception, building: Building | None) -> str:
    links = list(_chain(error))
    for link in links:
        if isinstance(link, ModuleNotFoundError) and link.name:
            return f"it needs {_missing_package(link.name)}{_place(error)}."
        if isinstance(link, yaml.YAMLError):
            return f"{yaml_problem(link)}. Correct that file."
        if isinstance(link, SyntaxError):
            return f"{link.filename}, line {link.lineno}, is not Python: {link.msg}. Correct that file."
    if building is not None and getattr(building.task, "dataset", None) is None:
        return _data_problem(links, building)
    if any(_is_missing(link) for link in links):
        return (
            f"it asks the Hugging Face hub for more than its data set ({_said(links[-1])}){_place(error)}. Let it do "
            f"so once where there is a network, with HF_HUB_OFFLINE=0 and HF_DATASETS_OFFLINE=0, and copy the cache "
            f"that HF_HOME names."
        )
    problem = item_problem(building.task, limit=1) if building is not None else None
    remedy = "" if isinstance(error, ImportError) else " Correct the task's files."
    return problem or f"{_said(error)}{_place(error)}.{remedy}"


def _missing_package(module: str) -> str:
    """What is not there, and how to get it."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return f"the Python package {package}, which is not installed: `pip install {package}`"
    return (
        f"the Python module {module}, which the installed version of {package} does not have: install a version of "
        f"{package} that has it"
    )


def item_problem(task: Any, *, limit: int | None = None) -> str | None:
    """What is wrong with the first item that a task's definition cannot be applied to; None if nothing is.

    Args:
        task: lm-eval's Task with its data, built or not.
        limit: look at the first so many items only.
    """
    try:
        items = task.eval_docs
        number_of_items = len(items)
    except Exception as error:  # noqa: BLE001 (task files hold other people's code: it may raise anything)
        return f"its items cannot be read: {_said(error)}{_place(error)}. Correct the task's files."
    if not number_of_items:
        return "it has no items: its data are empty, or its process_docs leaves none. Give it data with items."
    for number in range(number_of_items if limit is None else min(limit, number_of_items)):
        problem = _problem_of(task, items[number])
        if problem is not None:
            return f"item {number} (counted from 0): {problem}"
    return None


def prompt_problem(task: Any, error: Exception, *, num_fewshot: int) -> str:
    """Why prompts cannot be built: an item, an example before it, or what was raised.

    Args:
        task: lm-eval's Task, loaded.
        error: what building its prompts raised.
        num_fewshot: examples before each item.
    """
    problem = item_problem(task)
    if problem is not None or not num_fewshot:
        return problem or f"{_said(error)}{_place(error)}. Correct the task's files."
    examples = list(task.fewshot_docs() or [])
    if len(examples) < num_fewshot:
        return f"it has {len(examples)} examples. Ask for fewer (num_fewshot), or give it more."
    found = ((number, _problem_of(task, example)) for number, example in enumerate(examples))
    number, problem = next(((number, text) for number, text in found if text is not None), (0, None))
    if problem is not None:
        return f"example {number} (counted from 0): {problem}"
    return f"{_said(error)}{_place(error)}. Correct the task's files."


def _problem_of(task: Any, item: Any) -> str | None:
    """What is wrong with one item."""
    found: dict[str, Any] = {}
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if name == "doc_to_choice" and task.config.doc_to_choice is None:
            continue
        try:
            found[name] = getattr(task, name)(item)
        except Exception as error:  # noqa: BLE001 (see above)
            fields = f" Its fields are {', '.join(map(str, item))}." if isinstance(item, dict) else ""
            return f"{name} raises {_said(error)}{_place(error)}.{fields} Correct the item or {name}."
    choices = found.get("doc_to_choice")
    if choices is None:
        return None
    if not isinstance(choices, (list, tuple)):
        return f"doc_to_choice gives {choices!r}, which is no list. Correct doc_to_choice."
    for index, choice in enumerate(choices):
        if not choice:
            return f"its choice {index} is empty. Correct the item, or leave it out with process_docs."
    answer = found["doc_to_text"] if isinstance(found["doc_to_text"], int) else found["doc_to_target"]
    if isinstance(answer, int) and not -len(choices) <= answer < len(choices):
        return (
            f"its answer has the index {answer}, but it has {len(choices)} choices, numbered from 0 to "
            f"{len(choices) - 1}. Correct the item or doc_to_target."
        )
    return None


def _data_problem(links: list[BaseException], building: Building) -> str:
    """Why a task has no data."""
    path, name = getattr(building.task, "DATASET_PATH", None), getattr(building.task, "DATASET_NAME", None)
    if path in FILE_BUILDERS:
        config = building.task.config
        for file in _local_files((config.dataset_kwargs or {}).get("data_files")):
            problem = file_problem(file, is_json=path == "json")
            if problem is not None:
                return f"{problem} The files are named in its dataset_kwargs."
        return f"its data cannot be read: {_said(links[-1])}. Correct its dataset_kwargs or the files they name."
    data_set = f"data set {path}{f' ({name})' if name else ''}"
    if path is None:
        return "it names no data set. Give it a dataset_path, or a custom_dataset."
    if any(_is_missing(link) for link in links):
        return (
            f"its {data_set} is neither in probe.data_dir nor in the cache of `datasets` on this machine "
            f"({_said(links[0])}). {_FETCH}"
        )
    return f"its {data_set} cannot be read: {_said(links[-1])}{_place(links[0])}."


def file_problem(path: Path, *, is_json: bool) -> str | None:
    """What is wrong with a file of data: it is not there, or empty, or has a line that is no JSON; None if nothing."""
    try:
        with open_text(path) as file:
            content = file.read() if is_json else file.read(1)
    except FileNotFoundError:
        return f"{path} is not there. Put it there, or correct its name."
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8: {error}." if is_json else None
    except (OSError, EOFError) as error:
        return f"{path} cannot be read: {error}."
    if not content.strip():
        return f"{path} is empty. Give it items."
    if not is_json:
        return None
    try:
        json.loads(content)
    except ValueError as whole:
        return _line_problem(path, content) or (f"{path}, {whole}." if content.lstrip().startswith("[") else None)
    return None


def _line_problem(path: Path, content: str) -> str | None:
    if content.lstrip().startswith("["):
        return None
    for number, line in enumerate(content.split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError as error:
            return f"{path}, line {number}, is not JSON: {error}. Correct the line."
        if not isinstance(row, dict):
            return f"{path}, line {number}, is not a JSON object with an item's fields. Correct the line."
    return None


def _local_files(named: Any) -> Iterator[Path]:
    """The files of `data_files` that lie on this machine, patterns and addresses left out."""
    if isinstance(named, dict):
        for inner in named.values():
            yield from _local_files(inner)
    elif isinstance(named, (list, tuple)):
        for inner in named:
            yield from _local_files(inner)
    elif isinstance(named, str) and "://" not in named and "*" not in named:
        yield Path(named)


def _is_missing(link: BaseException) -> bool:
    kinds = {kind.__name__ for kind in type(link).__mro__}
    return isinstance(link, ConnectionError) or bool(kinds & {*_NOT_THERE}) or "Couldn't find" in str(link)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().rstrip('.')}"


def _place(error: BaseException) -> str:
    """Where in a task's own Python files an error came up; empty if in none."""
    for link in reversed(list(_chain(error))):
        trace, place = link.__traceback__, ""
        while trace is not None:
            if "__mtime__" in trace.tb_frame.f_globals:  # lm-eval marks the modules of task files so
                place = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"
            trace = trace.tb_next
        if place:
            return place
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on to the root."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or link.__context__
