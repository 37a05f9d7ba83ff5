"""The suites that ship: each is read, and lm-eval knows every task in it."""

from __future__ import annotations

import pytest

from probes.suite import SUITE_FOLDER, load_suite

NAMES = sorted(path.stem for path in SUITE_FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def known() -> set[str]:
    from lm_eval.tasks import TaskManager

    from probes.finder import BUNDLED_TASKS

    return set(TaskManager(include_path=[BUNDLED_TASKS]).task_index)


@pytest.mark.parametrize("name", NAMES)
def test_lm_eval_or_the_package_has_every_task(name: str, known: set[str]) -> None:
    assert {spec.task for spec in load_suite(name).tasks} <= known


def test_amber_is_what_llm360_measured() -> None:
    assert {(spec.task, spec.num_fewshot) for spec in load_suite("amber").tasks} == {
        ("arc_challenge", 25), ("hellaswag", 10), ("mmlu", 5), ("truthfulqa_mc2", 0),
    }  # fmt: skip


def test_fineline_has_the_five_domains_and_both_chinese_examinations() -> None:
    suite = load_suite("fineline")
    assert suite.domains == ("examination", "language", "knowledge", "understanding", "reasoning")
    assert {"ceval-valid", "cmmlu"} <= {spec.task for spec in suite.tasks}
