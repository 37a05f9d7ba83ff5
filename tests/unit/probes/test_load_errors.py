"""What is wrong with a task is said with its file and line; advice on data is given only where data are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.errors import ProbeError
from probes.harness import load_harness
from probes.suite import Suite, TaskSpec, load_suite
from tests.unit.probes.conftest import MULTIPLE_CHOICE, write_task

ITEM = {"question": "the cat", "choices": ["dog", "house"], "gold": 0}
ASKED = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"}


def refusal(folder: Path, task: str = "broken", **fields: Any) -> str:
    """What loading a task of the folder says; the advice to fetch data is never part of it here."""
    suite = Suite("s", (TaskSpec(task=task, domain="d", **fields),))
    with pytest.raises(ProbeError) as caught:
        load_harness(suite, task_paths=[folder])
    message = str(caught.value)
    assert "prefetch" not in message, message
    return message


def write_class_free(folder: Path, name: str = "broken", *, lines: str, code: str = "") -> None:
    """A task with extra lines of YAML and a file of functions."""
    write_task(folder, name, [ITEM], ASKED)
    with (folder / f"{name}.yaml").open("a") as file:
        file.write(lines)
    (folder / "functions.py").write_text(code)


def test_an_empty_data_file_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "broken", [], ASKED)
    assert f"{tmp_path / 'broken.jsonl'} is empty" in refusal(tmp_path)


def test_a_data_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "broken", [ITEM], ASKED)
    (tmp_path / "broken.jsonl").unlink()
    assert f"{tmp_path / 'broken.jsonl'} is not there" in refusal(tmp_path)


def test_a_line_of_data_that_is_no_json_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "broken", [ITEM], ASKED)
    (tmp_path / "broken.jsonl").write_text(json.dumps(ITEM) + "\n" + '{"question": "the\n')
    assert f"{tmp_path / 'broken.jsonl'}, line 2, is not JSON" in refusal(tmp_path)


def test_data_that_process_docs_empties_are_said_to_have_no_items(tmp_path: Path) -> None:
    code = "def nothing(dataset):\n    return dataset.select([])\n"
    write_class_free(tmp_path, lines="process_docs: !function functions.nothing\n", code=code)
    assert "it has no items: its data are empty, or its process_docs leaves none" in refusal(tmp_path)


def test_an_empty_choice_is_named_by_item_and_number(tmp_path: Path) -> None:
    write_task(tmp_path, "broken", [{**ITEM, "choices": ["dog", ""]}], ASKED)
    assert "item 0 (counted from 0): its choice 1 is empty" in refusal(tmp_path)


def test_an_answer_index_out_of_range_is_named_by_item_index_and_number_of_choices(tmp_path: Path) -> None:
    write_task(tmp_path, "broken", [{**ITEM, "gold": 7}], ASKED)
    assert "item 0 (counted from 0): its answer has the index 7, but it has 2 choices" in refusal(tmp_path)
    shots = {**ASKED, "fewshot_split": "validation"}
    write_task(tmp_path, "broken", [ITEM, ITEM, {**ITEM, "gold": 7}], shots)
    said = refusal(tmp_path, num_fewshot=2)
    assert "Prompts of task broken cannot be built with 2 examples: item 2 (counted from 0): its answer has" in said
    write_task(tmp_path, "broken", [ITEM, ITEM], shots)
    assert "it has 2 examples. Ask for fewer" in refusal(tmp_path, num_fewshot=5)


def test_a_field_that_an_item_lacks_is_named_with_the_fields_it_has(tmp_path: Path) -> None:
    write_task(tmp_path, "broken", [ITEM], {**ASKED, "doc_to_choice": "{{answers}}"})
    said = refusal(tmp_path)
    assert "item 0 (counted from 0): doc_to_choice raises" in said and "fields are question, choices, gold" in said


def test_a_missing_package_is_named_with_how_to_install_it(tmp_path: Path) -> None:
    code = "import no_such_package.part\ndef docs(dataset):\n    return dataset\n"
    write_class_free(tmp_path, lines="process_docs: !function functions.docs\n", code=code)
    said = refusal(tmp_path)
    assert "the Python package no_such_package, which is not installed: `pip install no_such_package`" in said
    assert "functions.py, line 1)" in said
    code = "import yaml.no_such_part\ndef docs(dataset):\n    return dataset\n"
    write_class_free(tmp_path, lines="process_docs: !function functions.docs\n", code=code)
    assert "yaml.no_such_part, which the installed version of yaml does not have" in refusal(tmp_path)


def test_python_that_fails_is_named_by_file_and_line(tmp_path: Path) -> None:
    line = "process_docs: !function functions.docs\n"
    write_class_free(tmp_path, lines=line, code="def docs(dataset):\n    return (dataset\n")
    assert f"{tmp_path / 'functions.py'}, line 2, is not Python" in refusal(tmp_path)
    write_class_free(tmp_path, lines=line, code="\ndef docs(dataset):\n    return dataset['none']\n")
    assert "functions.py, line 3)" in refusal(tmp_path)
    write_class_free(tmp_path, lines=line, code="x = 1\n")
    assert "has no function 'docs'" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["task", "group"])
def test_yaml_that_cannot_be_read_is_no_unknown_task(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(f"{kind}: broken\ntask_alias: [1, 2\nother: 3\n")
    said = refusal(tmp_path)
    assert f"{tmp_path / 'file.yaml'}, line 3, column 6, is not YAML" in said and "unknown" not in said
    said = refusal(tmp_path, "brokn")
    assert "Task 'brokn' (domain d) is unknown" in said and f"{tmp_path / 'file.yaml'}, line 3" in said
    (tmp_path / "file.yaml").write_text(f"{kind}: broken\ninclude: gone.yaml\n")
    assert "file.yaml cannot be read: FileNotFoundError" in refusal(tmp_path) and "gone.yaml" in refusal(tmp_path)


def test_a_group_names_the_member_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text("group: both\ntask: [good, broken]\n")
    write_task(tmp_path, "good", [ITEM], ASKED)
    said = refusal(tmp_path, "both")
    assert "Group both names the task 'broken', which is unknown" in said
    write_task(tmp_path, "broken", [{**ITEM, "gold": 7}], ASKED)
    assert "Task broken of both" in refusal(tmp_path, "both")
    (tmp_path / "broken.yaml").write_text("task: broken\nx: [\n")
    assert f"{tmp_path / 'broken.yaml'}, line 3" in refusal(tmp_path, "both")


def test_a_suite_that_is_no_yaml_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("tasks:\n  - {task: a, domain: d\n")
    with pytest.raises(ProbeError, match=r"s\.yaml, line 3, column 1, is not YAML"):
        load_suite(tmp_path / "s.yaml")


def test_a_broken_line_in_the_folder_of_data_sets_is_named(tmp_path: Path) -> None:
    definition = {"task": "far", "dataset_path": "org/far", "validation_split": "validation", **ASKED}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(definition))
    folder = tmp_path / "org" / "far" / "default"
    folder.mkdir(parents=True)
    (folder / "validation.jsonl").write_text(json.dumps(ITEM) + "\n\n[1]\n")
    with pytest.raises(ProbeError, match=r"validation\.jsonl, line 3, is not a JSON object"):
        load_harness(Suite("s", (TaskSpec(task="far", domain="d"),)), task_paths=[tmp_path], data_dir=tmp_path)
