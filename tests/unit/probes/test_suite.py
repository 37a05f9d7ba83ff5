from pathlib import Path

import pytest

from pretrain.errors import ProbeError
from probes.suite import SUITE_FOLDER, TaskSpec, load_suite


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_bundled_suite_loads():
    names = [path.stem for path in SUITE_FOLDER.glob("*.yaml")]
    assert "demo" in names
    for name in names:
        assert load_suite(name).tasks


def test_a_suite_file_gives_tasks_in_order_with_its_stem_as_name(tmp_path: Path):
    text = "tasks: [{task: b, domain: y, num_fewshot: 5, ppl: true}, {task: a, domain: x, limit: 9, generate: true}]"
    path = write(tmp_path / "mine.yaml", text)
    suite = load_suite(path)
    assert suite.name == "mine"
    first, second = (
        TaskSpec(task="b", domain="y", num_fewshot=5, ppl=True),
        TaskSpec(task="a", domain="x", limit=9, generate=True),
    )
    assert suite.tasks == (first, second)
    assert suite.domains == ("y", "x")


def test_all_problems_are_reported_at_once_with_the_nearest_key(tmp_path: Path):
    text = """
    taks: 1
    tasks:
      - {task: a, domain: x, num_fewshots: 5}
      - {task: a, domain: "x/y"}
      - {task: b, domain: x, limit: 0, ppl: 1, generate: maybe}
      - {domain: x}
      - {task: mean, domain: x}
      - 7
    """
    with pytest.raises(ProbeError) as caught:
        load_suite(write(tmp_path / "bad.yaml", text))
    message = str(caught.value)
    for part in (
        "bad.yaml",
        "Did you mean tasks?",
        "Did you mean num_fewshot?",
        "'x/y'",
        "limit=0",
        "ppl=1",
        "generate='maybe'",
        "tasks[3].task",
    ):
        assert part in message
    assert "tasks[4].task='mean'" in message and "tasks[5]=7" in message


def test_a_task_listed_twice_is_refused(tmp_path: Path):
    path = write(tmp_path / "twice.yaml", "tasks: [{task: a, domain: x}, {task: a, domain: y}]")
    with pytest.raises(ProbeError, match="listed before"):
        load_suite(path)


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(ProbeError, match="Did you mean demo"):
        load_suite("dmo")


@pytest.mark.parametrize("text", ["", "tasks: []", "- a", "tasks: [", "tasks: {a: b}"])
def test_a_file_that_is_no_suite_is_named(tmp_path: Path, text: str):
    with pytest.raises(ProbeError, match=r"odd\.yaml"):
        load_suite(write(tmp_path / "odd.yaml", text))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ProbeError, match="no such file"):
        load_suite(tmp_path / "none.yaml")
