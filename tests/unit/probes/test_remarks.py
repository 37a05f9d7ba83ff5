"""What is cut, hidden or left out is said wherever a suite is used, and every metric tells its own number of items."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import TokenLogProbs
from probes.beside import Settings
from probes.commands import score, watch
from probes.examiner import Examiner
from probes.hook import ProbeHook
from probes.journal import Journal
from probes.plan import Plan
from probes.remarks import item_fields, remarks, warning
from probes.score import CheckpointFacts
from probes.store import ProbeStore
from probes.suite import Suite, TaskSpec
from tests.unit.probes.conftest import MULTIPLE_CHOICE, sentence, write_task
from tests.unit.probes.test_hook import make_run
from tests.unit.probes.test_watch import Job

CONTEXT = 64
HIDDEN = "r_hidden: 3 of 4 items have no answer among their choices"
LONG = f"r_long: The prompts of 2 of 3 items are cut: with their answers they exceed the context of {CONTEXT} tokens"
EMPTY = "r_empty: 1 of 5 items cannot be scored and are left out."
WRITTEN = "2 of 3 prompts are cut where the model writes the answer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """r_hidden hides three answers, r_long has two long prompts, r_empty an empty choice; r_written is to write."""
    folder, rnd = tmp_path_factory.mktemp("remarks"), random.Random(7)
    asked = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"}

    def items(golds: list[int], words: int = 4) -> list[dict[str, Any]]:
        return [
            {
                "question": sentence(rnd, words, words),
                "choices": [sentence(rnd, 1, 3), sentence(rnd, 1, 3)],
                "gold": gold,
            }
            for gold in golds
        ]

    write_task(folder, "r_hidden", items([0, -1, -1, -1]), asked)
    write_task(folder, "r_long", [*items([0, 1], words=80), *items([0])], asked)
    empty = items([0, 1, 0, 1, 0])
    empty[2]["choices"] = ["dog", ""]
    write_task(folder, "r_empty", empty, {**asked, "target_delimiter": ""})
    written = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "dog",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    write_task(folder, "r_written", [*items([0, 0], words=80), *items([0])], written)
    (folder / "suite.yaml").write_text(
        "tasks:\n- {task: r_hidden, domain: a}\n- {task: r_long, domain: b}\n- {task: r_empty, domain: c}\n"
        "- {task: r_written, domain: d, generate: true}\n"
    )
    return folder


@pytest.fixture(scope="module")
def examiner(folder: Path, tokenizer: Tokenizer) -> Examiner:
    settings = Settings(suite=str(folder / "suite.yaml"), task_paths=[str(folder)])
    return Examiner(settings, tokenizer, max_length=CONTEXT, add_bos=True, cache=None)


def test_each_task_has_a_line_with_what_is_cut_hidden_and_left_out(examiner: Examiner, tmp_path: Path):
    examiner.plan.save(tmp_path / "plan")
    for plan in (examiner.plan, Plan.load(tmp_path / "plan")):
        lines = remarks(plan)
        assert [line.split(":")[0] for line in lines] == ["r_hidden", "r_long", "r_empty", "r_written"]
        for line, beginning in zip(lines, (HIDDEN, LONG, EMPTY, WRITTEN), strict=False):
            assert beginning in line
        assert item_fields(plan) == {
            "suite": "suite",
            "plan_hash": plan.plan_hash,
            "items_without_answer": {"r_hidden": 3},
            "prompts_cut": {"r_long": 2, "r_written": 2},
            "prompts_cut_to_generate": {"r_written": 2},
            "items_left_out": {"r_empty": 1},
        }
        assert warning(plan) == " ".join(lines)


def test_score_prints_the_lines_and_the_items_behind_each_metric(
    examiner: Examiner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    facts = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
    target: Any = SimpleNamespace(path=tmp_path / "model", facts=facts, run=None)
    log_probs = -np.random.default_rng(0).exponential(1.0, examiner.plan.rows.num_pairs)
    scored = TokenLogProbs(log_probs, log_probs > -0.1)
    score._report(target, examiner, {"out": str(tmp_path / "out")}, scored, 1.0, None)
    printed = capsys.readouterr().out
    for beginning in (
        f"\n{HIDDEN}",
        f"\n{LONG}",
        f"\n{EMPTY}",
        WRITTEN,
        "left out: r_empty, item 2: continuation 1 is empty",
    ):
        assert beginning in printed
    rows = {(row.task, row.metric): row for row in ProbeStore(tmp_path / "out").measurements}
    # As lm-eval, acc counts a hidden answer as wrong; what needs the right answer has a single item, and no error.
    assert rows["r_hidden", "acc"].num_items == 4 and rows["r_hidden", "acc"].value <= 0.25
    assert rows["r_hidden", "gold_bpb"].num_items == 1 and rows["r_hidden", "gold_bpb"].stderr is None
    assert rows["r_empty", "acc"].num_items == 4 and rows["r_long", "acc"].num_items == 3


def test_a_run_and_a_watcher_write_an_event_when_they_take_the_plan(
    examiner: Examiner, folder: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: Any, capsys: Any
):
    run = make_run(tmp_path, folder)
    suite = Suite("suite", (TaskSpec(task="r_hidden", domain="a"), TaskSpec(task="r_long", domain="b")))
    ProbeHook(suite=suite, tokenizer=tokenizer, max_length=CONTEXT, flops_per_token=6.0).on_start(run)
    kinds = [kind for kind, *_ in run.tracker.events]
    assert kinds == ["probe_plan", "probe_items"]
    fields = run.tracker.events[1][2]
    assert HIDDEN in fields["warning"] and LONG in fields["warning"]
    assert fields["items_without_answer"] == {"r_hidden": 3} and fields["prompts_cut"] == {"r_long": 2}
    monkeypatch.setattr("probes.target.find_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr("probes.target.require_add_bos", lambda *_: True)
    monkeypatch.setattr("probes.examiner.Examiner", lambda *_, **__: examiner)
    settings = Settings(suite=str(folder / "suite.yaml"), task_paths=[str(folder)])
    target: Any = SimpleNamespace(
        path=tmp_path,
        max_length=CONTEXT,
        facts=SimpleNamespace(step=0),
        spec=SimpleNamespace(vocab_size=tokenizer.vocab_size),
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
    monkeypatch.setattr(type(tokenizer), "model", property(lambda self: None), raising=False)
    watch._prepare(tmp_path, target, settings, Job())  # type: ignore[arg-type]
    events = [row for row in Journal(tmp_path).rows() if row["kind"] == "probe_items"]
    assert [row["items_left_out"] for row in events] == [{"r_empty": 1}]
    assert HIDDEN in events[0]["warning"] and HIDDEN in capsys.readouterr().err


def test_a_suite_with_nothing_to_remark_is_said_to_be_whole(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer, task_folder: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "whole.yaml").write_text("tasks:\n- {task: t_choice, domain: a}\n")
    settings = Settings(suite=str(tmp_path / "whole.yaml"), task_paths=[str(task_folder)])
    examiner = Examiner(settings, tokenizer, max_length=256, add_bos=True, cache=None)
    assert remarks(examiner.plan) == [] and warning(examiner.plan) == ""
    facts = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
    log_probs = np.full(examiner.plan.rows.num_pairs, -1.0)
    target: Any = SimpleNamespace(path=tmp_path / "model", facts=facts, run=None)
    score._report(target, examiner, {}, TokenLogProbs(log_probs, log_probs > 0), 1.0, None)
    assert "No prompt is cut, no answer is hidden, and no item is left out." in capsys.readouterr().out
