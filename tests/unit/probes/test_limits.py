"""`limit` as a number and as a share of items, and `num_fewshot` for all tasks: lm-eval's rules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.config.checks import find_problems
from pretrain.config.load import compose, from_plain, to_plain
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ConfigError, ProbeError
from probes.beside import KEYS, Settings
from probes.commands.arguments import parse_keys
from probes.examiner import Examiner
from probes.harness import load_harness
from probes.suite import Suite, TaskSpec, load_suite, num_limited
from tests.unit.probes.conftest import MULTIPLE_CHOICE, write_task
from tests.unit.probes.test_harness import lm_eval_tasks


@pytest.mark.parametrize("limit", [1, 3, 400, 0.001, 0.1, 0.25, 0.999])
def test_a_limit_is_as_many_items_as_in_lm_eval(limit: float) -> None:
    from lm_eval.evaluator_utils import get_sample_size

    for total in (1, 3, 10, 101):
        task: Any = SimpleNamespace(eval_docs=range(total))
        assert num_limited(total, None, limit) == min(total, get_sample_size(task, limit))


def test_a_share_is_of_the_items_of_each_task_and_the_smaller_of_two_limits_holds(task_folder: Path) -> None:
    specs = tuple(TaskSpec(task=name, domain="d", limit=limit) for name, limit in (("t_choice", 0.5), ("t_pairs", 4)))
    tasks = load_harness(Suite("s", specs), task_paths=[task_folder], limit=0.24).tasks
    assert [len({one.doc_id for one in task.task.instances}) for task in tasks] == [5, 4]  # of 20 and 30


@pytest.mark.parametrize("limit", ["0", "-1", "1.0", "1.5", "true", "many"])
def test_what_is_neither_a_number_of_items_nor_a_share_is_refused_everywhere(limit: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"tasks: [{{task: a, domain: d, limit: {limit}}}]\n")
    allowed = "a whole number of items of at least 1, or a share of them between 0 and 1"
    with pytest.raises(ProbeError, match=allowed):
        load_suite(tmp_path / "s.yaml")
    with pytest.raises(ConfigError, match=allowed):
        parse_keys([f"limit={limit}"], KEYS)


def test_a_run_and_a_command_take_a_share() -> None:
    assert parse_keys(["limit=0.1"], KEYS) == {"limit": 0.1}
    values = to_plain(compose(["experiment=demo", "probe.limit=0.1"]))
    config = from_plain(values)
    assert config.probe.limit == 0.1 and not [text for text in find_problems(config) if "probe.limit" in text]
    values["probe"]["limit"] = 20
    assert repr(from_plain(values).probe.limit) == "20"
    values["probe"]["limit"] = 1.5
    assert [text for text in find_problems(from_plain(values)) if text.startswith("probe.limit=1.5 is not a whole")]


def test_num_fewshot_holds_for_the_tasks_for_which_it_holds_in_lm_eval(
    task_folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    from lm_eval import evaluator
    from lm_eval.models.dummy import DummyLM

    class Model(DummyLM):
        tokenizer = None  # lm-eval's own would ask the hub for one

    folder = tmp_path / "tasks"
    folder.mkdir()
    items = [{"question": f"the cat {n}", "choices": ["dog", "house"], "gold": 0} for n in range(6)]
    write_task(folder, "fixed", items, {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}", "num_fewshot": 0})
    (folder / "fixed.yaml").write_text((folder / "fixed.yaml").read_text().replace("${TASK_DIR}", str(folder)))
    manager = lm_eval_tasks(task_folder, folder)
    names = ["t_choice", "t_shots", "fixed"]
    theirs = evaluator.simple_evaluate(
        Model(), tasks=names, num_fewshot=3, limit=2, task_manager=manager, bootstrap_iters=0
    )["n-shot"]
    lines = ", ".join(f"{{task: {name}, domain: d}}" for name in [*names, "t_text"])
    suite = tmp_path / "s.yaml"
    suite.write_text(f"tasks: [{{task: t_choice, domain: d, num_fewshot: 1}}, {lines}]\n")
    settings = Settings.from_keys({"suite": str(suite), "task_paths": [str(folder)], "limit": 2, "num_fewshot": 3})
    examiner = Examiner(settings, tokenizer, max_length=256, add_bos=True, cache=None)
    found = {task.name: task.num_fewshot for task in examiner.plan.tasks}
    assert found == {**theirs, "t_text": 0} and theirs == {"t_choice": 3, "t_shots": 3, "fixed": 0}
