"""The bridge to lm-eval: its tasks loaded, asked for requests once, and given answers at every save.

Imports lm-eval (lazily: that takes seconds), as `probes.encode` and `probes.lm_eval_metrics` do and nothing else.
lm-eval stays the authority: its tasks build the requests, its rule splits them into tokens, its filters,
`process_results` and aggregations make its metrics out of our answers. What it does at every evaluation, and
needs to do only once (reading data, rendering prompts), is done once per run here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from probes.capture import HarnessTask, describe_task, task_requests
from probes.encode import build_encoder
from probes.lm_eval_metrics import task_metrics
from probes.local_data import dataset_folder, find_splits, read_split
from probes.metrics import MetricValue, answer_starts
from probes.plan import RequestTable
from probes.request import ProbeTokenizer, Request, SuiteRequests, TaskFacts
from probes.suite import Suite, TaskSpec

BUNDLED_TASKS = Path(__file__).parent / "tasks"
FEWSHOT_SEED = 1234
"""lm-eval's default seed for drawing few-shot examples."""

_SCORED = ("loglikelihood", "multiple_choice", "loglikelihood_rolling", "generate_until")
_FILE_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Values of `dataset_path` with which `datasets` reads local files."""


class Harness:
    """The tasks of a suite, loaded: gives requests once, turns answers into lm-eval's metrics many times.

    Args:
        suite: name of the suite.
        tasks: with requests built; see `load_harness`.
    """

    def __init__(self, suite: str, tasks: Sequence[HarnessTask]) -> None:
        self.suite = suite
        self.tasks = list(tasks)

    def capture(self, tokenizer: ProbeTokenizer, *, add_bos: bool, max_length: int) -> SuiteRequests:
        """Tokenised requests of all tasks, as lm-eval's HFLM would tokenise them.

        Items that HFLM refuses with an assertion (a continuation that is empty or longer than `max_length`
        tokens) are left out and named. Control tokens spelt out in an item (`<s>`) are text here.

        Args:
            tokenizer: the run's tokenizer.
            add_bos: `<s>` before every prompt, HFLM's `add_bos_token`.
            max_length: tokens of context the model was trained on.

        Raises:
            ProbeError: a task without a single item that can be scored, or a tokenizer without `<s>` and `</s>`.
        """
        encoder = build_encoder(tokenizer, add_bos=add_bos)
        requests: list[Request] = []
        skipped: list[str] = []
        facts: list[TaskFacts] = []
        digest = hashlib.sha256()
        with _cached_templates(), _preserved_random_state():
            for index, task in enumerate(self.tasks):
                captured, left_out = task_requests(task, index, encoder, max_length=max_length)
                requests.extend(captured)
                skipped.extend(left_out)
                facts.append(task.facts(captured))
                digest.update(describe_task(task).encode())
        return SuiteRequests(self.suite, facts, requests, skipped, digest.hexdigest())

    def metrics(
        self, table: RequestTable, log_likelihood_R: np.ndarray, is_greedy_R: np.ndarray
    ) -> list[MetricValue]:
        """lm-eval's own metrics from answers to all requests; none of tasks whose answers would be generated.

        Names are lm-eval's, `name,filter` for filters other than the default one; for standard errors see
        `probes.lm_eval_metrics.standard_error`.

        Args:
            table: columns of the plan compiled from `capture`.
            log_likelihood_R: float64 [requests], in nats.
            is_greedy_R: bool [requests].

        Raises:
            ProbeError: not one answer for each of lm-eval's requests.
        """
        requests, starts = answer_starts(table)
        instances = [instance for task in self.tasks for instance in task.task.instances]
        if not (len(log_likelihood_R) == len(is_greedy_R) == len(table.task_R) and len(starts) == len(instances)):
            raise ProbeError(
                f"{len(log_likelihood_R)} answers to the {len(table.task_R)} requests of a plan, which stand for "
                f"{len(starts)} of lm-eval's; suite {self.suite} has {len(instances)}."
            )
        log_likelihood = np.add.reduceat(log_likelihood_R[requests], starts).tolist()
        is_greedy = np.logical_and.reduceat(is_greedy_R[requests], starts).tolist()
        for instance, value, greedy in zip(instances, log_likelihood, is_greedy, strict=True):
            answer = value if instance.request_type == "loglikelihood_rolling" else (value, greedy)
            instance.resps = [answer] * (instance.repeats or 1)
            instance.filtered_resps = {}
        found: list[MetricValue] = []
        with _cached_templates(), _preserved_random_state():
            for index, task in enumerate(self.tasks):
                if task.task.OUTPUT_TYPE != "generate_until":
                    found.extend(task_metrics(task.task, index))
        return found


def load_harness(
    suite: Suite,
    *,
    task_paths: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    limit: int | None = None,
) -> Harness:
    """Builds the suite's tasks and their prompts.

    A name is looked up in `task_paths` (the first folder that has it), then among the bundled tasks, then in
    lm-eval's own index (which takes seconds to read, so only if need be). Data sets are looked for in `data_dir`,
    then in the cache of `datasets`; on this machine only, unless HF_HUB_OFFLINE and HF_DATASETS_OFFLINE say
    otherwise. Groups and tags become their tasks. Python's and numpy's random state are left as they were.

    Args:
        suite: what to load.
        task_paths: folders with lm-eval task YAML files; `${TASK_DIR}` in a value is the file's folder.
        data_dir: folder of data sets, see `probes.local_data` for its layout.
        limit: items per task at most, beside the suite's own limits.

    Raises:
        ProbeError: an unknown task, one that cannot be loaded, or one that cannot be scored.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for folder in task_paths:
        if not Path(folder).is_dir():
            raise ProbeError(f"probe.task_paths={folder}: there is no such folder. Give folders of task YAML files.")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ProbeError(f"probe.data_dir={data_dir}: there is no such folder. Give a folder of data sets.")
    finder = _TaskFinder(task_paths, data_dir)
    tasks: list[HarnessTask] = []
    with _cached_templates(), _preserved_random_state():
        for spec in suite.tasks:
            for task in finder.load(spec):
                _prepare(task, spec, limit)
                tasks.append(HarnessTask(task, spec.domain, str(task.task_name), spec.ppl))
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProbeError(f"Suite {suite.name} holds {', '.join(twice)} more than once, by itself and in a group.")
    return Harness(suite.name, tasks)


class _TaskFinder:
    """Looks tasks up in lm-eval's indexes and builds them."""

    def __init__(self, task_paths: Sequence[str | Path], data_dir: str | Path | None = None) -> None:
        from lm_eval.tasks import TaskManager

        folders = [BUNDLED_TASKS, *reversed([Path(path) for path in task_paths])]  # lm-eval: the last one wins
        self._local = TaskManager(include_path=folders, include_defaults=False)
        self._data_dir = data_dir

    @property
    def _builtin(self) -> Any:
        return _builtin_manager()

    def load(self, spec: TaskSpec) -> list[Any]:
        """The lm-eval tasks of a line of the suite, data read, prompts not yet built."""
        manager = self._local if spec.task in self._local.task_index else self._builtin
        entry = manager.task_index.get(spec.task)
        if entry is None:
            known = [*self._local.all_subtasks, *self._builtin.all_tasks]
            raise ProbeError(
                f"Task {spec.task!r} (domain {spec.domain}) is unknown.{did_you_mean(spec.task, known)} Tasks are "
                f"looked up in probe.task_paths, among the bundled ones in {BUNDLED_TASKS}, and in lm-eval's own."
            )
        try:
            with tempfile.TemporaryDirectory(prefix="fineline-tasks-") as cache, _quiet(), _local_data(self._data_dir):
                wanted = _task_config(entry.yaml_path, cache) if entry.kind.name == "TASK" else spec.task
                tasks = list(manager.load([wanted])["tasks"].values())
        except ProbeError:
            raise
        except Exception as error:  # noqa: BLE001 (task files hold other people's code: it may raise anything)
            raise ProbeError(
                f"Task {spec.task} of {entry.yaml_path} cannot be loaded: {type(error).__name__}: {error}. "
                f"Data sets must be on this machine already: fetch them with `python -m probes prefetch` where there "
                f"is a network and set probe.data_dir, or set HF_DATASETS_OFFLINE=0 and HF_HUB_OFFLINE=0 to let "
                f"lm-eval download them."
            ) from error
        for task in tasks:
            _need_examples(task, spec, self._data_dir)
        return tasks


@functools.cache
def _builtin_manager() -> Any:
    """lm-eval's own index: nearly 14,000 files, some 17 seconds of parsing, read once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextlib.contextmanager
def _local_data(data_dir: str | Path | None) -> Iterator[None]:
    """Has tasks built meanwhile read their data set from `data_dir`, if it is there, in place of the hub."""
    from lm_eval.api.task import ConfigurableTask

    original = ConfigurableTask.download

    def download(self: Any, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        config = self.config
        files = find_splits(data_dir, config.dataset_path, config.dataset_name) if data_dir is not None else {}
        if not files or callable(config.custom_dataset):
            original(self, dataset_kwargs, **kwargs)
            return
        evaluated = config.test_split or config.validation_split
        shots = _fewshot_split(config)
        if evaluated not in files:
            folder = dataset_folder(data_dir or "", config.dataset_path, config.dataset_name)
            raise ProbeError(f"Task {config.task} needs split {evaluated!r}, but {folder} has {', '.join(files)} only.")
        self.dataset = {split: read_split(files[split]) for split in files if split in (evaluated, shots)}
        if shots is not None and shots not in files:
            self.fewshot_docs = lambda: None  # needed only where the suite asks for examples, see _need_examples

    ConfigurableTask.download = download
    try:
        yield
    finally:
        ConfigurableTask.download = original


def _need_examples(task: Any, spec: TaskSpec, data_dir: str | Path | None) -> None:
    wanted = task.get_config("num_fewshot") if spec.num_fewshot is None else spec.num_fewshot
    if wanted and not hasattr(task, "sampler") and data_dir is not None:
        folder = dataset_folder(data_dir, task.config.dataset_path, task.config.dataset_name)
        raise ProbeError(
            f"Task {task.task_name} draws its {wanted} examples from split {_fewshot_split(task.config)!r}, which "
            f"{folder} has not. Add the file, or set num_fewshot: 0 in the suite."
        )


def _fewshot_split(config: Any) -> str | None:
    """The split that lm-eval draws examples from; None where the definition itself has them."""
    if config.fewshot_config.split is not None:
        return config.fewshot_config.split
    if config.fewshot_config.samples is not None:
        return None
    return config.training_split or config.validation_split or config.test_split


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


def _prepare(task: Any, spec: TaskSpec, limit: int | None) -> None:
    """Sets shots as `lm_eval.simple_evaluate` does, refuses what we cannot score, builds the prompts."""
    _refuse(task, spec)
    own = task.get_config("num_fewshot")
    if own == 0 and spec.num_fewshot:
        raise ProbeError(
            f"Task {task.task_name} fixes num_fewshot at 0, but the suite asks for {spec.num_fewshot}, which lm-eval "
            f"would ignore. Remove num_fewshot from the suite's entry."
        )
    task.set_config(key="num_fewshot", value=own or 0 if spec.num_fewshot is None else spec.num_fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    limits = [number for number in (spec.limit, limit) if number is not None]
    try:
        with _quiet():
            task.build_all_requests(limit=min(limits, default=None))
    except Exception as error:  # noqa: BLE001 (templates and functions of task files may raise anything)
        raise ProbeError(
            f"Prompts of task {task.task_name} cannot be built with {spec.num_fewshot or own or 0} examples: "
            f"{type(error).__name__}: {error}"
        ) from error
    _remember_templates(task)


def _refuse(task: Any, spec: TaskSpec) -> None:
    """Names what cannot be scored, or not as the suite asks."""
    if task.OUTPUT_TYPE not in _SCORED or getattr(task, "MULTIMODAL", False):
        kind = "images or sound" if getattr(task, "MULTIMODAL", False) else f"output_type {task.OUTPUT_TYPE}"
        raise ProbeError(
            f"Task {task.task_name} has {kind}, which cannot be scored at saves. Allowed are text tasks with "
            f"output_type {', '.join(_SCORED)}; run this one with lm-eval on an exported checkpoint."
        )
    if spec.ppl and task.OUTPUT_TYPE != "multiple_choice":
        raise ProbeError(
            f"Task {task.task_name} has output_type {task.OUTPUT_TYPE}, but the suite asks for ppl: true, which "
            f"chooses among answers (output_type multiple_choice). Remove ppl from the suite's entry."
        )
    if spec.num_fewshot and task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise ProbeError(
            f"Task {task.task_name} scores texts without a prompt, but the suite asks for num_fewshot: "
            f"{spec.num_fewshot}. Remove num_fewshot from the suite's entry."
        )


def _remember_templates(task: Any) -> None:
    """Renders an item's choices and target once, not at every save: most of the time of `Harness.metrics`."""

    def remembering(function: Any) -> Any:
        memory: dict[int, tuple[Any, Any]] = {}  # holds the item, too, so that its id stays its own

        def remembered(doc: Any, *arguments: Any) -> Any:
            if arguments:
                return function(doc, *arguments)
            if id(doc) not in memory:
                memory[id(doc)] = doc, function(doc)
            return memory[id(doc)][1]

        return remembered

    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, remembering(getattr(task, name)))


@contextlib.contextmanager
def _cached_templates() -> Iterator[None]:
    """Compiles each Jinja template once; lm-eval compiles it anew for every item, most of its time here."""
    from lm_eval import utils

    utils.env.from_string = functools.lru_cache(maxsize=None)(type(utils.env).from_string.__get__(utils.env))
    try:
        yield
    finally:
        del utils.env.from_string


@contextlib.contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Seeds Python's and numpy's global generators as `lm_eval.simple_evaluate` does, and puts them back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is meant)
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars off the terminal; log records and errors pass."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
