"""The bridge to lm-eval: its tasks loaded, asked for requests once, and given answers at every save.

Imports lm-eval (lazily: that takes seconds), as `probes.encode` and `probes.lm_eval_metrics` do and nothing else.
lm-eval stays the authority: its tasks build the requests, its rule splits them into tokens, its filters,
`process_results` and aggregations make its metrics out of our answers. What it does at every evaluation, and
needs to do only once (reading data, rendering prompts), is done once per run here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import ProbeError
from probes.capture import HarnessTask, by_item, describe_task, task_requests
from probes.encode import build_encoder
from probes.execute import with_programs
from probes.finder import TaskFinder, quiet
from probes.groups import TaskGroup, groups_of_line
from probes.items import StoredSuite, StoredTask, give_items, store_task
from probes.lm_eval_metrics import all_missing, task_metrics
from probes.load_errors import prompt_problem
from probes.metrics import Found, answer_starts
from probes.plan import RequestTable
from probes.prompts import texts_wanted, with_prompts
from probes.request import ProbeTokenizer, Request, SuiteRequests, TaskFacts
from probes.scorable import refuse, refuse_programs
from probes.suite import Limit, Suite, TaskSpec, num_limited
from probes.task_data import Building, data_from_folder, need_examples
from probes.templates import cached_templates, remember_templates

FEWSHOT_SEED = 1234
"""lm-eval's default seed for drawing few-shot examples."""


class Harness:
    """The tasks of a suite, loaded: gives requests once, turns answers into lm-eval's metrics many times.

    Args:
        suite: the suite.
        tasks: with requests built; see `load_harness`.
        groups: what the scores of groups are made of.
        limit: items per task at most, or a share of them, beside the suite's own limits.
    """

    def __init__(
        self,
        suite: Suite,
        tasks: Sequence[HarnessTask],
        groups: Sequence[TaskGroup],
        *,
        limit: Limit | None = None,
    ) -> None:
        self.suite = suite.name
        self.tasks = list(tasks)
        self._groups = tuple(groups)
        self._specs = suite.tasks
        self._limit = limit

    def capture(self, tokenizer: ProbeTokenizer, *, add_bos: bool, max_length: int) -> SuiteRequests:
        """Tokenised requests of all tasks, as lm-eval's HFLM would tokenise them.

        Items that HFLM refuses with an assertion (a continuation that is empty or longer than `max_length`
        tokens) are left out and named; where the model writes the answer, only the reference is. Control tokens spelt
        out in an item (`<s>`) are text here.

        Args:
            tokenizer: the run's tokenizer.
            add_bos: `<s>` before every prompt, HFLM's `add_bos_token`.
            max_length: tokens of context the model was trained on.

        Raises:
            ProbeError: a task without a single item that can be scored, an item that a plan cannot hold, or a
                tokenizer without `<s>` and `</s>`.
        """
        encoder = build_encoder(tokenizer, add_bos=add_bos)
        requests: list[Request] = []
        skipped: list[str] = []
        facts: list[TaskFacts] = []
        tasks: list[StoredTask] = []
        digest = hashlib.sha256()
        with cached_templates(), _preserved_random_state():
            for index, task in enumerate(self.tasks):
                captured = task_requests(task, index, encoder, max_length=max_length)
                requests += captured.requests
                skipped += [*captured.left_out, *captured.without_reference]
                stored_task, num_cut = with_prompts(store_task(task.task, task.name), task, encoder, max_length)
                tasks.append(stored_task)
                facts.append(
                    dataclasses.replace(task.facts(captured, max_length=max_length), num_cut_to_generate=num_cut)
                )
                digest.update(describe_task(task).encode())
                digest.update(tasks[-1].definition.encode())
        if not requests:
            raise ProbeError(
                f"Suite {self.suite} has no answer whose likelihood can be scored; the first reason: {skipped[0]}. "
                f"Add a task with shorter reference answers, or use a longer context than {max_length} tokens."
            )
        stored = StoredSuite(self.suite, self._specs, self._limit, tuple(tasks), self._groups)
        return SuiteRequests(self.suite, facts, requests, skipped, digest.hexdigest(), stored)

    def metrics(self, table: RequestTable, log_likelihood_R: np.ndarray, is_greedy_R: np.ndarray) -> list[Found]:
        """lm-eval's own metrics from answers to all requests; none of tasks whose answers would be generated.

        What cannot be computed is among them as a `MissingMetric`.

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
        instances = self._answered_by(table, requests[starts])
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
        found: list[Found] = []
        with cached_templates(), _preserved_random_state():
            for index, task in enumerate(self.tasks):
                if not task.is_generative:
                    found.extend(task_metrics(task.task, index))
        return found

    def _answered_by(self, table: RequestTable, requests: np.ndarray) -> list[Any]:
        """lm-eval's requests that a plan answers, in its order: all but texts whose reference cannot be scored."""
        columns = (table.task_R[requests], table.item_R[requests], table.choice_R[requests])
        places = set(zip(*(column.tolist() for column in columns), strict=True))
        return [
            instance
            for index, task in enumerate(self.tasks)
            for item, members in by_item(task.task.instances).items()
            for number, instance in enumerate(members)
            if instance.request_type != "generate_until" or (index, item, number) in places
        ]

    def generated_metrics(self, texts: Mapping[int, Sequence[str]]) -> list[Found]:
        """lm-eval's own metrics of answers that the model wrote; programs among them are run.

        What cannot be computed is among them as a `MissingMetric`. Other requests of the same items keep the answers
        that `metrics`, called before, has given them.

        Args:
            texts: by index of the task, one for each of its requests for a text, in order.
        """
        found: list[Found] = []
        with cached_templates(), _preserved_random_state():
            for index, answers in texts.items():
                task = self.tasks[index].task

                def metrics(task: Any = task, index: int = index, answers: Sequence[str] = answers) -> Any:
                    for instance, text in zip(texts_wanted(task), answers, strict=True):
                        instance.resps = [text] * (instance.repeats or 1)
                        instance.filtered_resps = {}
                    return list(task_metrics(task, index))

                try:
                    found.extend(with_programs(metrics) if task.config.unsafe_code else metrics())
                except OSError as error:  # no process, no memory, no disk for the programs
                    reason = f"its programs could not be run: {type(error).__name__}: {error}"
                    found.extend(all_missing(task, index, reason))
        return found


def load_harness(
    suite: Suite,
    *,
    task_paths: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    limit: Limit | None = None,
    allow_code_execution: bool = False,
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
        limit: items per task at most, or a share of them, beside the suite's own limits.
        allow_code_execution: programs that the model writes may be run.

    Raises:
        ProbeError: an unknown task, one that cannot be loaded, or one that cannot be scored.
    """
    _stay_offline()
    finder = TaskFinder(task_paths, data_from_folder(data_dir))
    tasks: list[HarnessTask] = []
    groups: list[TaskGroup] = []
    with cached_templates(), _preserved_random_state():
        for spec, line in zip(suite.tasks, suite.lines, strict=True):
            loaded, of_line = finder.load(spec)
            groups += groups_of_line(spec.task, line, of_line, loaded, first=len(tasks))
            for task in loaded:
                refuse_programs(task, spec, allowed=allow_code_execution)
                _prepare(task, spec, limit, num_siblings=len(loaded))
                name = str(task.task_name)
                tasks.append(HarnessTask(task, spec.domain, name, spec.ppl, line, spec.generate))
    _refuse_twice(suite, tasks, groups)
    return Harness(suite, tasks, groups, limit=limit)


def restore_harness(
    stored: StoredSuite, *, task_paths: Sequence[str | Path] = (), allow_code_execution: bool = False
) -> Harness:
    """The tasks of a compiled suite, for metrics only: no data set is read and no prompt is built.

    Args:
        stored: of a plan.
        task_paths: as for `load_harness`; the tasks' definitions must be found, and be those that were compiled.
        allow_code_execution: programs that the model writes may be run.

    Raises:
        ProbeError: a task that is unknown, has changed, or cannot be restored.
    """
    _stay_offline()
    suite = Suite(stored.name, stored.specs)
    kept: dict[str, list[StoredTask]] = {}
    for record in stored.tasks:
        kept.setdefault(record.name, []).append(record)

    def give(building: Building) -> None:
        if not kept.get(building.name):
            raise ProbeError(f"Task {building.name} is new in a group of suite {stored.name}; compile the plan again.")
        give_items(building.task, kept[building.name][0])

    finder = TaskFinder(task_paths, give)
    tasks: list[HarnessTask] = []
    groups: list[TaskGroup] = []
    with cached_templates(), _preserved_random_state():
        for spec, line in zip(suite.tasks, suite.lines, strict=True):
            loaded, of_line = finder.load(spec)
            groups += groups_of_line(spec.task, line, of_line, loaded, first=len(tasks))
            for task in loaded:
                refuse_programs(task, spec, allowed=allow_code_execution)
                name = str(task.task_name)
                kept.get(name, [None]).pop(0)
                tasks.append(HarnessTask(task, spec.domain, name, spec.ppl, line, spec.generate))
    if [task.name for task in tasks] != [task.name for task in stored.tasks]:
        raise ProbeError(
            f"Suite {stored.name} has other tasks than when its plan was compiled; compile the plan again."
        )
    if tuple(groups) != stored.groups:
        changed = sorted({group.name for group in set(groups) ^ set(stored.groups)})
        raise ProbeError(
            f"The scores of {', '.join(changed) or 'groups'} in suite {stored.name} are made in another way than when "
            f"the plan was compiled; compile the plan again."
        )
    for task, record in zip(tasks, stored.tasks, strict=True):
        _restore_requests(task.task, record)
    return Harness(suite, tasks, groups, limit=stored.limit)


def _restore_requests(task: Any, record: StoredTask) -> None:
    """lm-eval's requests of a task as they were, without their prompts."""
    from lm_eval.api.instance import Instance

    if not getattr(task, "is_restored", False):
        raise ProbeError(
            f"Task {record.name} reads its data by code of its own, so that a plan cannot restore it. Run without "
            f"probe.plan where the data are, or remove the task from the suite."
        )
    task.set_config(key="num_fewshot", value=record.num_fewshot)
    task._instances = [
        Instance(
            request_type=kind,
            doc=record.documents[item],
            arguments=(),
            idx=number,
            metadata=(record.name, item, repeats),
        )
        for item, number, kind, repeats in record.instances
    ]
    remember_templates(task)


def _refuse_twice(suite: Suite, tasks: Sequence[HarnessTask], groups: Sequence[TaskGroup]) -> None:
    """Each curve has one source: a task, or group, at a number of examples is there once."""
    named = [(task.name, task.num_fewshot) for task in tasks]
    for group in groups:
        shots = {tasks[index].num_fewshot for index in group.members}
        named.append((group.name, shots.pop() if len(shots) == 1 else -1))
    twice = sorted({name for name, shots in named if named.count((name, shots)) > 1})
    if twice:
        raise ProbeError(
            f"Suite {suite.name} holds {', '.join(twice)} more than once with the same number of examples: by itself "
            f"and in a group, or with a number that the task's own definition says, too. Remove one of the two."
        )


def _stay_offline() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _prepare(task: Any, spec: TaskSpec, limit: Limit | None, *, num_siblings: int) -> None:
    """Sets shots as `lm_eval.simple_evaluate` does, refuses what we cannot score, builds the prompts."""
    own = task.get_config("num_fewshot")
    if spec.gives_way and (own == 0 or task.OUTPUT_TYPE == "loglikelihood_rolling"):
        spec = dataclasses.replace(spec, num_fewshot=0)
    refuse(task, spec)
    if own == 0 and spec.num_fewshot:
        raise ProbeError(
            f"Task {task.task_name} fixes num_fewshot at 0, but the suite asks for {spec.num_fewshot}, which lm-eval "
            f"would ignore. Remove num_fewshot from the suite's entry."
        )
    task.set_config(key="num_fewshot", value=own or 0 if spec.num_fewshot is None else spec.num_fewshot)
    need_examples(task)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    try:
        with quiet():
            most = num_limited(len(task.eval_docs), spec.limit, limit)
            task.build_all_requests(limit=most, samples=_subset(task, spec, most, num_siblings))
    except Exception as error:  # noqa: BLE001 (templates and functions of task files may raise anything)
        shots = int(task.get_config("num_fewshot") or 0)
        raise ProbeError(
            f"Prompts of task {task.task_name} cannot be built with {shots} examples: "
            f"{prompt_problem(task, error, num_fewshot=shots)}"
        ) from error
    remember_templates(task)


def _subset(task: Any, spec: TaskSpec, total: int, num_siblings: int) -> list[int] | None:
    """Items of the fast tier, chosen by hash and so the same for ever, as many of each task of a group; None is all."""
    if spec.sample is None:
        return None
    wanted = -(-spec.sample // num_siblings)
    by_hash = sorted(range(total), key=lambda item: hashlib.sha256(f"{task.config.task}/{item}".encode()).digest())
    return sorted(by_hash[:wanted]) if wanted < total else None


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
