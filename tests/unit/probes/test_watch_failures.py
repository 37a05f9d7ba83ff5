"""What a watcher does where something failed: a checkpoint, a rank, a model, or what training was to measure."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import PackedRows, TokenLogProbs
from pretrain.errors import EngineError
from probes.beside import Settings
from probes.examiner import Examiner
from probes.hook import ProbeHook
from probes.journal import SCORED
from probes.suite import load_suite
from tests.unit.probes.conftest import write_task
from tests.unit.probes.test_hook import make_run, save_at
from tests.unit.probes.watched_run import FakeRun


def test_damaged_and_removed_checkpoints_are_reported_and_passed_over(
    run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run.save(0, 30)
    run.save(10, weights=-1)
    (run.directory / "checkpoints" / "step_00000020").mkdir()  # without a manifest

    def remove() -> None:
        run.save(40)
        shutil.rmtree(run.directory / "checkpoints" / "step_00000010")
        run.event("finished", 40)

    run.meanwhile = [remove]
    run.watcher().run()
    assert run.steps() == [0, 30, 40]
    causes = [(row["step"], row["cause"]) for row in run.journal("passed_over")]
    assert [step for step, _ in causes] == [10, 20, 10]
    assert "layer 3 is damaged" in causes[0][1] and "removed" in causes[2][1]
    assert "step 10  passed over" in capsys.readouterr().err


def test_what_inline_probing_failed_on_is_made_up_for_and_later_saves_are_not_harmed(
    run: FakeRun, suite_file: Path, task_folder: Path, tokenizer: Tokenizer
) -> None:
    training = make_run(run.directory, task_folder)
    training.config.probe.tokens_per_row = 128
    hook = ProbeHook(suite=load_suite(suite_file), tokenizer=tokenizer, max_length=256, flops_per_token=6.0)
    hook.on_start(training)
    assert hook.tiers["full"].plan.plan_hash == run.examiner.plan.plan_hash
    score = training.engine.score
    for step in (0, 10, 20):
        training.engine.score = broken if step == 10 else score
        save_at(hook, training, step)
    assert run.steps() == [0, 20]
    (warning,) = [fields["warning"] for kind, _, fields in training.tracker.events if kind == "probe_failed"]
    assert "no memory" in warning and f"python -m probes watch {run.directory} until=now" in warning
    run.config.probe.mode = "inline"
    run.write_config()
    run.event("probe_plan", 0, plan_hash=run.examiner.plan.plan_hash)
    run.save(0, 10, 20)
    run.metrics_at(21)
    run.watcher("now").run()
    assert [row["step"] for row in run.journal(SCORED)] == [10] and sorted(run.steps()) == [0, 10, 20]


def broken(*_: Any) -> Any:
    raise EngineError("Scoring failed on rank 1: MemoryError: no memory")


def test_a_checkpoint_that_a_rank_could_not_score_comes_again_after_the_others(run: FakeRun) -> None:
    run.save(0, 10)
    score, faults = run.scorer.score, [broken, broken]
    run.scorer.score = lambda rows: (faults.pop() if faults else score)(rows)  # type: ignore[method-assign]
    run.meanwhile = [lambda: None] * 2  # it waits before each second attempt
    run.watcher("now").run()
    assert run.steps() == [0, 10], "the first attempts at both failed"
    assert [row["step"] for row in run.journal("failed")] == [0, 10]


def test_a_checkpoint_that_cannot_be_scored_at_all_is_passed_over_in_the_end(run: FakeRun) -> None:
    run.save(0, 10)
    score, calls = run.scorer.score, []

    def fail_on_the_first(rows: PackedRows) -> TokenLogProbs:
        calls.append(run.scorer.weights)
        return broken() if run.scorer.weights == 1 else score(rows)

    run.scorer.score = fail_on_the_first  # type: ignore[method-assign]
    run.meanwhile = [lambda: None] * 2
    run.watcher("now").run()
    assert run.steps() == [10] and calls.count(1) == 3
    (row,) = run.journal("passed_over")
    assert row["step"] == 0 and "no memory" in row["cause"] and "start watch again" in row["cause"]


def test_a_model_that_diverged_is_reported_and_not_tried_again(run: FakeRun) -> None:
    run.save(0)
    run.scorer.score = lambda rows: TokenLogProbs(np.full(rows.num_pairs, np.nan), np.zeros(rows.num_pairs, bool))  # type: ignore[method-assign]
    run.event("finished", 0)
    run.watcher().run()
    assert run.steps() == [] and "not finite" in run.journal("passed_over")[0]["cause"]


def written_run(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """A run whose suite wants written answers, and whose model always writes one word."""
    items = [{"question": f"say {word}", "answer": word} for word in ("stone", "river", "tree")]
    definition = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}:",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16, "do_sample": False},
    }
    write_task(tmp_path, "t_say", items, definition)
    (tmp_path / "say.yaml").write_text("tasks:\n- {task: t_say, domain: language, generate: true}\n")
    settings = Settings(suite=str(tmp_path / "say.yaml"), task_paths=[str(tmp_path)], tokens_per_row=128)
    run = FakeRun(
        tmp_path / "run",
        Examiner(settings, tokenizer, max_length=256, add_bos=False, cache=None),
        monkeypatch,
    )
    run.tokenizer = tokenizer
    river = tokenizer.encode("river")

    def generated(requests: Any) -> list[list[int]]:
        return [list(river) for _ in requests]

    monkeypatch.setattr(run.scorer, "generate", generated, raising=False)
    return run


@pytest.mark.parametrize(("generate", "expected"), [(False, [40]), (True, [0, 10, 20, 30, 40])])
def test_answers_are_written_by_the_last_checkpoint_or_by_all(
    generate: bool, expected: list[int], tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = written_run(tmp_path, tokenizer, monkeypatch)
    run.save(0, 10, 20, 30, 40)
    run.event("finished", 40)
    run.watcher(generate=generate).run()
    found = {row["step"]: row["value"] for row in run.rows() if row["metric"] == "exact_match"}
    assert found == dict.fromkeys(expected, pytest.approx(1 / 3))
    assert run.steps() == [0, 10, 20, 30, 40]


def test_answers_that_training_failed_to_have_written_are_made_up_for(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = written_run(tmp_path, tokenizer, monkeypatch)
    run.save(0, 10, 20)
    run.watcher("now").run()
    assert run.journal(SCORED) and not [row for row in run.rows() if row["metric"] == "exact_match"]
    run.event("probe_failed", 10, suite="say", part="generating", cause="no memory")
    run.watcher("now").run()
    run.watcher("now").run()
    assert {row["step"] for row in run.rows() if row["metric"] == "exact_match"} == {10}
    assert [row["step"] for row in run.journal(SCORED)] == [0, 10, 20, 10]
