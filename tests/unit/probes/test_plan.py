import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.harness import load_harness
from probes.pack import digest_rows
from probes.plan import Plan, PlanSettings, compile_plan, hash_plan
from probes.request import SuiteRequests
from probes.suite import Suite, TaskSpec
from tests.unit.probes.conftest import MULTIPLE_CHOICE, write_task

SETTINGS = PlanSettings(max_length=256, add_bos=False)


@pytest.fixture(scope="module")
def captured(task_folder: Path, suite: Suite, tokenizer: Tokenizer) -> SuiteRequests:
    return load_harness(suite, task_paths=[task_folder]).capture(tokenizer, add_bos=False, max_length=256)


@pytest.fixture(scope="module")
def plan(captured: SuiteRequests, tokenizer: Tokenizer) -> Plan:
    return compile_plan(captured, tokenizer, SETTINGS)


def test_a_saved_plan_is_read_back_exactly(plan: Plan, tmp_path: Path):
    plan.save(tmp_path / "plan")
    plan.save(tmp_path / "plan")  # replaces itself
    loaded = Plan.load(tmp_path / "plan")
    assert digest_rows(loaded.rows.rows) == loaded.rows.digest == plan.rows.digest
    for field in dataclasses.fields(plan.table):
        np.testing.assert_array_equal(getattr(loaded.table, field.name), getattr(plan.table, field.name))
        assert getattr(loaded.table, field.name).dtype == getattr(plan.table, field.name).dtype
    assert (loaded.suite, loaded.plan_hash, loaded.tasks) == (plan.suite, plan.plan_hash, plan.tasks)
    assert (loaded.stats, loaded.skipped, loaded.num_tokens) == (plan.stats, plan.skipped, plan.num_tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize("name", ["plan.npz", "plan.json"])
def test_every_flipped_byte_is_noticed(plan: Plan, tmp_path: Path, name: str):
    plan.save(tmp_path / "plan")
    path = tmp_path / "plan" / name
    content = bytearray(path.read_bytes())
    for place in range(5, len(content), len(content) // 25):
        damaged = bytearray(content)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        with pytest.raises(ProbeError, match=r"cannot be read: .*Compile it again"):
            Plan.load(tmp_path / "plan")


def test_a_missing_or_cut_plan_is_named(plan: Plan, tmp_path: Path):
    with pytest.raises(ProbeError, match="nothing"):
        Plan.load(tmp_path / "nothing")
    plan.save(tmp_path / "plan")
    (tmp_path / "plan" / "plan.npz").write_bytes(b"")
    with pytest.raises(ProbeError, match="checksum"):
        Plan.load(tmp_path / "plan")


def test_a_folder_that_is_no_plan_is_neither_read_nor_replaced(plan: Plan, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ProbeError, match=r"is not a compiled suite: it .* holds notes.txt. .*probes compile"
    ) as refused:
        Plan.load(tmp_path)
    assert "elete" not in str(refused.value)
    with pytest.raises(ProbeError, match=r"would be replaced by a compiled suite, but it .* holds notes.txt"):
        plan.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    plan.save(tmp_path / "plan")
    (tmp_path / "plan" / "plan.npz").write_bytes(b"")
    plan.save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan").plan_hash == plan.plan_hash


def test_the_hash_is_known_before_packing_and_names_what_is_scored(
    captured: SuiteRequests, plan: Plan, tokenizer: Tokenizer
):
    assert hash_plan(captured, tokenizer, SETTINGS) == plan.plan_hash
    others = [
        dataclasses.replace(SETTINGS, max_length=128),
        dataclasses.replace(SETTINGS, add_bos=True),
        dataclasses.replace(SETTINGS, tokens_per_row=1024),
        dataclasses.replace(SETTINGS, multiple=32),
    ]
    hashes = {hash_plan(captured, tokenizer, settings) for settings in others} | {plan.plan_hash}
    request = captured.requests[0]
    shorter = dataclasses.replace(request, continuation=(*request.continuation, 5))
    changed = dataclasses.replace(captured, requests=[shorter, *captured.requests[1:]])
    hashes.add(hash_plan(changed, tokenizer, SETTINGS))
    hashes.add(hash_plan(dataclasses.replace(captured, content_digest="other"), tokenizer, SETTINGS))
    moved = dataclasses.replace(captured.tasks[0], domain="elsewhere")
    hashes.add(hash_plan(dataclasses.replace(captured, tasks=[moved, *captured.tasks[1:]]), tokenizer, SETTINGS))
    assert len(hashes) == 8


def test_the_hash_depends_on_items_and_definition_but_not_on_where_they_lie(tmp_path: Path, tokenizer: Tokenizer):
    items = [{"question": "the cat", "choices": ["dog", "house"], "gold": 0}]
    definition = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"}
    variants = {
        "here": (items, definition),
        "there": (items, definition),
        "gold": ([{**items[0], "gold": 1}], definition),
        "versioned": (items, {**definition, "metadata": {"version": 2.0}}),
        "metric": (items, {**definition, "metric_list": definition["metric_list"][:1]}),
    }
    hashes = {}
    for name, (docs, content) in variants.items():
        write_task(tmp_path / name, "t", docs, content)
        suite = Suite("s", (TaskSpec(task="t", domain="d"),))
        captured = load_harness(suite, task_paths=[tmp_path / name]).capture(tokenizer, add_bos=False, max_length=256)
        hashes[name] = hash_plan(captured, tokenizer, SETTINGS)
    assert hashes["here"] == hashes["there"]
    assert len(set(hashes.values())) == 4


def test_compiling_again_gives_the_same_plan(task_folder: Path, suite: Suite, tokenizer: Tokenizer, plan: Plan):
    captured = load_harness(suite, task_paths=[task_folder]).capture(tokenizer, add_bos=False, max_length=256)
    again = compile_plan(captured, tokenizer, SETTINGS)
    assert (again.plan_hash, again.rows.digest) == (plan.plan_hash, plan.rows.digest)


def test_rows_hold_far_fewer_tokens_than_requests_alone(plan: Plan):
    assert plan.stats["tokens"] == plan.num_tokens
    assert plan.stats["tokens"] < plan.stats["naive_tokens"] / 2
