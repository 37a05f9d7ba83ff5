"""Plans are complete in themselves: what they give back is what the data sets gave."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.harness import Harness, load_harness, restore_harness
from probes.items import StoredSuite
from probes.plan import Plan, PlanSettings, compile_plan
from probes.suite import Suite, TaskSpec
from tests.unit.probes.conftest import ALL_TASKS, MORE_TASKS, MULTIPLE_CHOICE, write_task

EVERY = (*ALL_TASKS, *MORE_TASKS, "t_solve", "t_recall", "t_program")
SETTINGS = PlanSettings(max_length=64, add_bos=True)


def of(*specs: TaskSpec) -> Suite:
    return Suite("s", specs)


def one(name: str, **fields: Any) -> Suite:
    return of(TaskSpec(task=name, domain="d", **fields))


def compiled(suite: Suite, folder: Path, tokenizer: Tokenizer, **fields: Any) -> tuple[Harness, Plan]:
    harness = load_harness(suite, task_paths=[folder], **fields)
    captured = harness.capture(tokenizer, add_bos=True, max_length=SETTINGS.max_length)
    return harness, compile_plan(captured, tokenizer, SETTINGS)


def saved(plan: Plan, folder: Path) -> Plan:
    plan.save(folder)
    return Plan.load(folder)


def assert_same_metrics(plan: Plan, original: Harness, restored: Harness) -> None:
    rng = np.random.default_rng(0)
    for _ in range(2):
        log_likelihood = -rng.exponential(5.0, len(plan.table.task_R))
        is_greedy = rng.random(len(plan.table.task_R)) < 0.3
        expected = original.metrics(plan.table, log_likelihood, is_greedy)
        found = restored.metrics(plan.table, log_likelihood, is_greedy)
        assert len(found) > 0
        assert [repr(value) for value in found] == [repr(value) for value in expected]  # repr: every bit of a float


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every attempt to read a data set fail."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a data set was asked for")

    for name in ("load_dataset", "load_from_disk"):
        monkeypatch.setattr(datasets, name, refuse)
    monkeypatch.setattr("probes.task_data.read_split", refuse)


def test_metrics_of_every_kind_of_task_are_bitwise_those_of_the_data(
    task_folder: Path, tokenizer: Tokenizer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    specs = [TaskSpec(task=name, domain="d", ppl=name == "t_choice") for name in EVERY]
    original, plan = compiled(of(*specs), task_folder, tokenizer)
    loaded = saved(plan, tmp_path / "plan")
    assert loaded.stored == plan.stored
    request.getfixturevalue("no_data")
    assert_same_metrics(plan, original, restore_harness(loaded.stored, task_paths=[task_folder]))


def test_definitions_suffice_and_may_have_moved(task_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    original, plan = compiled(of(*(TaskSpec(task=name, domain="d") for name in EVERY)), task_folder, tokenizer)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(task_folder, elsewhere, ignore=shutil.ignore_patterns("*.jsonl", "__pycache__"))
    assert_same_metrics(plan, original, restore_harness(plan.stored, task_paths=[elsewhere]))


def test_groups_with_overrides_and_limits_are_restored(task_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for path in task_folder.iterdir():
        if path.suffix == ".yaml":
            (folder / path.name).write_text(path.read_text().replace("${TASK_DIR}", str(task_folder)))
        elif path.suffix == ".py":
            shutil.copy(path, folder)
    metric = "{metric: acc_norm, aggregation: mean, higher_is_better: true}"
    (folder / "both.yaml").write_text(f"group: both\ntask: [{{task: t_choice, metric_list: [{metric}]}}, t_word]\n")
    suite = of(TaskSpec(task="both", domain="d"), TaskSpec(task="t_pairs", domain="e", limit=7))
    original, plan = compiled(suite, folder, tokenizer, limit=9)
    assert [task.num_items for task in plan.tasks] == [9, 9, 7]
    loaded = saved(plan, tmp_path / "plan")
    assert_same_metrics(plan, original, restore_harness(loaded.stored, task_paths=[folder]))
    (folder / "both.yaml").write_text("group: both\ntask: [t_choice, t_word, t_blank]\n")
    with pytest.raises(ProbeError, match="changed since|new in a group"):
        restore_harness(loaded.stored, task_paths=[folder])
    (folder / "both.yaml").write_text("group: both\ntask: [t_word]\n")
    with pytest.raises(ProbeError, match="other tasks than when its plan was compiled"):
        restore_harness(loaded.stored, task_paths=[folder])


def test_skipped_items_and_a_first_item_that_is_skipped_are_restored(tmp_path: Path, tokenizer: Tokenizer) -> None:
    items = [
        {"question": "the cat", "choices": ["dog " * 90, "runs"], "gold": [0, 1]},  # too long
        {"question": "the dog", "choices": ["dog", "cat"], "gold": [1]},
        {"question": "the house", "choices": ["dog", "cat"], "gold": [0, 1]},
    ]
    write_task(tmp_path / "tasks", "t", items, {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    original, plan = compiled(one("t"), tmp_path / "tasks", tokenizer)
    assert sorted(plan.stored.tasks[0].documents) == [1, 2] and len(plan.skipped) == 1
    assert_same_metrics(plan, original, restore_harness(plan.stored, task_paths=[tmp_path / "tasks"]))


CHANGES = {
    "template": ("t.yaml", "{{question}}", "Q: {{question}}"),
    "metrics": ("t.yaml", "process_results", "doc_to_decontamination_query: question\nprocess_results"),
    "function": ("own.py", "ll", "l"),
    "helper of a function": ("own.py", "HALF = 0.5", "HALF = 0.25"),
    "version": ("t.yaml", "version: 1", "version: 2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_task_that_has_changed_is_refused(change: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    items = [{"question": "the cat", "choices": ["dog", "house"], "gold": 0}] * 3
    definition = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}", "metadata": {"version": 1}}
    write_task(tmp_path, "t", items, definition)
    with (tmp_path / "t.yaml").open("a") as file:
        file.write("process_results: !function own.results\n")
    (tmp_path / "own.py").write_text(
        "HALF = 0.5\ndef results(doc, ll):\n    return {'acc': HALF * (ll[0][0] > ll[1][0])}\n"
    )
    original, plan = compiled(one("t"), tmp_path, tokenizer)
    assert_same_metrics(plan, original, restore_harness(plan.stored, task_paths=[tmp_path]))
    name, before, after = CHANGES[change]
    text = (tmp_path / name).read_text()
    assert before in text
    (tmp_path / name).write_text(text.replace(before, after))
    with pytest.raises(ProbeError, match="Task t has changed since the plan was compiled; compile the plan again"):
        restore_harness(plan.stored, task_paths=[tmp_path])
    _, again = compiled(one("t"), tmp_path, tokenizer)
    assert again.plan_hash != plan.plan_hash


@pytest.mark.slow
def test_a_task_that_is_gone_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_task(
        tmp_path,
        "t_gone",
        [{"question": "q", "choices": ["dog", "cat"], "gold": 0}],
        {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"},
    )
    _, plan = compiled(one("t_gone"), tmp_path, tokenizer)
    (tmp_path / "t_gone.yaml").unlink()
    with pytest.raises(ProbeError, match="'t_gone'.* is unknown"):
        restore_harness(plan.stored, task_paths=[tmp_path])


def test_an_item_that_json_would_change_is_refused_by_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    items = [{"question": "the cat", "choices": ["dog", "house"], "gold": 0}]
    write_task(tmp_path, "t", items, {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    with (tmp_path / "t.yaml").open("a") as file:
        file.write("process_docs: !function dated.add\n")
    (tmp_path / "dated.py").write_text(
        "import datetime\n"
        "def add(docs):\n"
        "    return docs.add_column('when', [datetime.datetime(2020, 1, 1)] * len(docs))\n"
    )
    harness = load_harness(one("t"), task_paths=[tmp_path])
    with pytest.raises(ProbeError, match="Task t, item 0: field 'when' is a datetime, which a plan cannot hold"):
        harness.capture(tokenizer, add_bos=True, max_length=64)


@pytest.mark.parametrize(
    "value", [(1, 2), {1: "a"}, b"a", np.float64(1.0), np.arange(2), {1, 2}, datetime.date(2020, 1, 1), True + 0j]
)
def test_only_what_json_gives_back_exactly_is_plain(value: Any) -> None:
    from probes.items import _not_plain

    assert "field 'a'" in _not_plain({"a": value}) and "field 'a'" in _not_plain({"a": [0, value]})
    assert "field 'a'.b" in _not_plain({"a": {"b": value}})
    plain = {"a": [1, 1.5, True, None, "\ud800ß\u2028", {"b": []}], "c": float("inf")}
    assert not _not_plain(plain)
    assert json.loads(json.dumps(plain)) == plain


def test_a_stored_suite_is_read_back_and_compared(task_folder: Path, tokenizer: Tokenizer) -> None:
    _, plan = compiled(one("t_word"), task_folder, tokenizer)
    stored = plan.stored
    assert StoredSuite.from_bytes(stored.to_bytes()) == stored
    assert stored.to_bytes() == stored.to_bytes()

    def wanted(*specs: TaskSpec, name: str = "s", limit: int | None = None) -> list[str]:
        return stored.differences(StoredSuite(name, specs, limit, ()))

    word = TaskSpec(task="t_word", domain="d")
    assert wanted(word) == []
    assert wanted(word, name="other", limit=3) == ["suite s, now other", "limit None, now 3"]
    assert wanted(TaskSpec(task="t_word", domain="e", limit=2)) == [
        "domain of task t_word d, now e",
        "limit of task t_word None, now 2",
    ]
    assert wanted(TaskSpec(task="t_pairs", domain="d")) == [
        "task t_word is no longer in the suite",
        "task t_pairs is new",
    ]


def test_a_plan_names_every_difference_from_what_is_wanted(task_folder: Path, tokenizer: Tokenizer) -> None:
    _, plan = compiled(one("t_word"), task_folder, tokenizer)
    same = {"suite": one("t_word"), "limit": None, "tokenizer": tokenizer.fingerprint, "settings": SETTINGS}
    assert plan.differences(**same) == []
    other = PlanSettings(max_length=128, add_bos=False, tokens_per_row=1024)
    assert plan.differences(**{**same, "limit": 5, "tokenizer": "x", "settings": other}) == [
        "limit None, now 5",
        f"tokenizer {tokenizer.fingerprint}, now x",
        "max_length 64, now 128",
        "add_bos True, now False",
        "tokens_per_row 4096, now 1024",
    ]


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_damaged_items_are_noticed(place: str, task_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    _, plan = compiled(one("t_word"), task_folder, tokenizer)
    plan.save(tmp_path / "plan")
    path = tmp_path / "plan" / "items.json.gz"
    content = bytearray(path.read_bytes())
    content[{"start": 0, "middle": len(content) // 2, "end": -1}[place]] ^= 1
    path.write_bytes(content)
    with pytest.raises(ProbeError, match="items.json.gz does not agree with its checksum"):
        Plan.load(tmp_path / "plan")
    path.unlink()
    with pytest.raises(ProbeError, match="cannot be read"):
        Plan.load(tmp_path / "plan")
