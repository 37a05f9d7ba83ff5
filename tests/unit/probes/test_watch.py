"""Slices, and what a watcher does with a run: on one process, with a scorer that looks at tokens only."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import TokenLogProbs
from pretrain.errors import ConfigError, ProbeError
from pretrain.locks import Held
from probes.beside import Settings, score_in_slices, select_rows
from probes.commands.arguments import parse_keys
from probes.examiner import Examiner, results_table
from probes.journal import SCORED, Journal
from probes.late import TRAINING_LOCK, LateScoresHook, show_unshown
from probes.partial import PartialAnswers
from probes.plan import Plan
from probes.score import CheckpointFacts
from probes.store import ProbeStore
from tests.unit.probes.watched_run import FakeRun, Job, Scorer


def plan_of(examiner: Examiner) -> Plan:
    assert len(examiner.plan.rows.rows) >= 5, "several slices are wanted"
    return examiner.plan


def test_rows_scored_in_slices_of_any_size_give_what_one_call_gives(examiner: Examiner) -> None:
    rows, scorer = plan_of(examiner).rows, Scorer()
    whole = scorer.score(rows)
    for slice_rows in (1, 2, 3, 64):
        partial = PartialAnswers(len(rows.rows), rows.num_pairs, folder=None, stamp={})
        scored, _ = score_in_slices(scorer, rows, partial, Job(), slice_rows=slice_rows)  # type: ignore[arg-type]
        assert np.array_equal(scored.log_prob_P, whole.log_prob_P)
        assert np.array_equal(scored.is_greedy_P, whole.is_greedy_P)


def test_selected_rows_count_their_pairs_from_zero_and_leave_the_plan_alone(examiner: Examiner) -> None:
    rows = plan_of(examiner).rows
    before = [row.pair_id_P.copy() for row in rows.rows]
    part, ids = select_rows(rows, [3, 1])
    assert part.num_pairs == len(ids) and part.digest != rows.digest
    assert np.concatenate([row.pair_id_P for row in part.rows]).tolist() == list(range(part.num_pairs))
    assert ids.tolist() == [*before[3], *before[1]]
    assert all(np.array_equal(row.pair_id_P, ids) for row, ids in zip(rows.rows, before, strict=True))


def test_slices_on_disk_are_taken_up_unless_weights_layout_or_bytes_differ(tmp_path: Path) -> None:
    def fresh(**stamp: str) -> PartialAnswers:
        return PartialAnswers(4, 8, folder=tmp_path / "p", stamp={"weights": "w", **stamp})

    scored = TokenLogProbs(-np.arange(2.0), np.array([True, False]))
    first = fresh()
    first.add([2], np.array([5, 1]), scored, seconds=1.5)
    first.add([0], np.array([0, 7]), scored, seconds=0.5)
    again = fresh()
    assert again.missing_rows() == [1, 3] and again.seconds == 2.0
    assert again.answers().log_prob_P[[5, 1, 0, 7]].tolist() == [0, -1, 0, -1]
    again.add([1], np.array([2, 3]), scored, seconds=1.0)
    newest = max((tmp_path / "p").iterdir())
    newest.write_bytes(newest.read_bytes()[:-30])
    assert fresh().missing_rows() == [1, 3], "a damaged slice is done again"
    assert fresh(layout="other").missing_rows() == [0, 1, 2, 3]
    assert list((tmp_path / "p").iterdir()) == [], "what is of no use is removed"


def test_every_checkpoint_on_the_calendar_is_scored_once_oldest_first(run: FakeRun) -> None:
    run.save(0, 7, 20, 10)
    run.meanwhile = [lambda: run.save(30), lambda: (run.save(40), run.event("finished", 40))]  # type: ignore[func-returns-value, list-item]
    run.watcher().run()
    assert run.steps() == [0, 10, 20, 30, 40]
    assert {(row["tokens"], row["flops"]) for row in run.rows() if row["step"] == 20} == {(2000, 12000.0)}
    calls = len(run.scorer.calls)
    run.watcher().run()
    assert len(run.scorer.calls) == calls and [row["step"] for row in run.journal(SCORED)] == [0, 10, 20, 30, 40]


def test_a_run_that_is_extended_is_followed_to_its_new_end(run: FakeRun) -> None:
    run.save(0, 40)

    def extend() -> None:
        run.event("resume", 40)
        run.config.train.steps = 55
        run.write_config()  # after the event, as training does it
        run.event("length_changed", 40, steps_before=40, steps_now=55)

    run.meanwhile = [extend, lambda: run.save(50), lambda: (run.save(55), run.event("finished", 55))]  # type: ignore[func-returns-value, list-item]
    run.watcher().run()
    assert run.steps() == [0, 40, 50, 55]


def test_tasks_of_one_domain_that_share_no_metric_are_scored_once_each(
    tmp_path: Path, task_folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mean over the domain can be made then, so that the record has none to wait for."""
    (tmp_path / "mixed.yaml").write_text("tasks:\n- {task: t_pairs, domain: d}\n- {task: t_text, domain: d}\n")
    settings = Settings(suite=str(tmp_path / "mixed.yaml"), task_paths=[str(task_folder)], tokens_per_row=128)
    examiner = Examiner(settings, tokenizer, max_length=256, add_bos=False, cache=None)
    run = FakeRun(tmp_path / "run", examiner, monkeypatch)
    run.save(0, 10)
    run.scorer.killed_after = 2  # one call for each checkpoint
    run.watcher("now").run()
    assert run.steps() == [0, 10] and "mean" not in {row["task"] for row in run.rows()}
    run.watcher("now").run()
    assert [row["step"] for row in run.journal(SCORED)] == [0, 10]


def test_a_killed_watcher_goes_on_in_the_middle_of_a_suite(run: FakeRun) -> None:
    run.save(0, 10)
    run.watcher("now").run()
    expected, total = run.rows(), len(plan_of(run.examiner).rows.rows)
    (run.directory / "probes.jsonl").unlink()
    run.scorer = Scorer()
    for after in (2, 3, total + 1):
        run.scorer.killed_after = after
        with pytest.raises(KeyboardInterrupt):
            run.watcher("now", slice_rows=1).run()
    run.scorer.killed_after = None
    run.watcher("now", slice_rows=1).run()
    assert run.rows() == expected
    assert len(run.scorer.calls) == 2 * total, "no row was scored twice"
    assert not (run.directory / "probes.partial").exists()


def test_partial_answers_of_replaced_weights_are_not_used(run: FakeRun) -> None:
    run.save(0)
    run.scorer.killed_after = 2
    with pytest.raises(KeyboardInterrupt):
        run.watcher("now", slice_rows=1).run()
    run.save(0, weights=77)
    run.scorer.killed_after = None
    run.watcher("now", slice_rows=1).run()
    replaced = run.rows()
    (run.directory / "probes.jsonl").unlink()
    run.watcher("now").run()
    assert run.rows() == replaced


def test_beside_inline_probing_only_steps_that_training_left_out_are_scored(run: FakeRun) -> None:
    run.config.probe.mode = "inline"
    run.write_config()
    run.event("probe_plan", 0, plan_hash=run.examiner.plan.plan_hash)
    run.event("probe_plan", 0, plan_hash="that of the fast tier")
    run.save(0, 10)
    run.metrics_at(10)
    run.watcher("now").run()
    assert run.steps() == [0], "training may be measuring step 10"
    run.metrics_at(11)
    run.watcher("now").run()
    assert run.steps() == [0, 10]
    run.save(20)
    run.metrics_at(20)
    run.event("resume", 20)
    run.event("probe_plan", 20, plan_hash="another")
    run.watcher("now").run()
    assert run.steps() == [0, 10, 20], "training measures another plan"


def test_training_shows_late_scores_once_each_and_the_watcher_what_is_left(run: FakeRun) -> None:
    shown: list[tuple[int, int]] = []
    events: list[str] = []
    tracker = SimpleNamespace(
        log_views=lambda values, *, step, tokens: shown.append((step, tokens)),
        event=lambda kind, **fields: events.append(kind),
    )
    info = SimpleNamespace(directory=run.directory, resume_step=-1)
    training: Any = SimpleNamespace(
        job=Job(), info=info, tracker=tracker, state=SimpleNamespace(step=0), config=run.config
    )
    hook = LateScoresHook(every_steps=10)
    hook.on_start(training)
    assert not Held(run.directory / TRAINING_LOCK).take()
    run.save(0, 10)
    run.watcher("now").run()
    for step in (5, 20, 30):
        training.state.step = step
        hook.on_step(training, SimpleNamespace(state=training.state))  # type: ignore[arg-type]
        assert shown == ([] if step == 5 else [(0, 0), (10, 1000)])
    run.save(20)
    run.watcher("now").run()
    journal, store = Journal(run.directory), ProbeStore(run.directory)
    assert journal.unshown() == [(20, run.examiner.plan.plan_hash)] and events == []
    show_unshown(journal, store, lambda values, step, tokens: shown.append((step, tokens)))
    hook.on_end(training)
    assert shown == [(0, 0), (10, 1000), (20, 2000)]


def test_what_is_left_to_show_goes_to_the_views_of_the_run_and_a_view_that_fails_is_named(
    run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.config.track.wandb.enabled, run.config.track.tensorboard.enabled = False, True
    run.write_config()
    run.save(0, 10)
    run.event("finished", 40)
    run.watcher().run()
    written = EventAccumulator(str(run.directory / "tensorboard"))
    written.Reload()
    shown = {event.step: event.value for event in written.Scalars("probe-language/t_word/acc")}
    recorded = {row["step"]: row["value"] for row in run.rows() if (row["task"], row["metric"]) == ("t_word", "acc")}
    assert shown == pytest.approx(recorded, rel=1e-6) and set(shown) == {0, 10}  # TensorBoard keeps fp32
    assert Journal(run.directory).unshown() == []
    shutil.rmtree(run.directory / "tensorboard")
    (run.directory / "tensorboard").write_text("in the way")
    run.save(20)
    run.watcher().run()
    assert "the tensorboard view is switched off" in capsys.readouterr().err


def test_a_resumed_run_forgets_scores_of_steps_it_does_again(run: FakeRun) -> None:
    run.save(0, 10, 20)
    run.watcher("now").run()
    info = SimpleNamespace(directory=run.directory, resume_step=10)
    tracker = SimpleNamespace(log_views=lambda *a, **k: None, event=lambda *a, **k: None)
    hook = LateScoresHook()
    hook.on_start(SimpleNamespace(job=Job(), info=info, tracker=tracker, state=SimpleNamespace(step=10)))  # type: ignore[arg-type]
    assert run.steps() == [0, 10]
    run.watcher("now").run()
    assert run.steps() == [0, 10, 20]


def test_a_plan_compiled_before_is_used_and_another_one_refused_by_name(
    examiner: Examiner, suite_file: Path, task_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plan = suite_file.parent / "plans" / examiner.plan.plan_hash
    common: dict[str, Any] = {"suite": str(suite_file), "task_paths": [str(task_folder)], "plan": str(plan)}
    options: dict[str, Any] = {"max_length": 256, "add_bos": False, "cache": None}
    own = Settings(**{**common, "suite": None}, tokens_per_row=128)  # the plan's own suite
    again = Examiner(own, tokenizer, **{**options, "cache": tmp_path / "plans"})
    assert Plan.load(tmp_path / "plans" / examiner.plan.plan_hash).describe() == examiner.plan.describe()
    scored = Scorer().score(examiner.plan.rows)
    facts = CheckpointFacts(run="r", step=1, tokens=2, flops=3.0, config_hash="c")
    first, second = (each.examine(scored, facts, seconds=1.0)[0] for each in (examiner, again))
    assert first == second
    table = results_table(first)
    assert "t_word" in table and "mean of choice" in table and "±" in table
    with pytest.raises(ProbeError, match="tokens_per_row 128, now 256"):
        Examiner(Settings(**common, tokens_per_row=256), tokenizer, **options)


def test_arguments_make_settings_and_a_run_completes_them() -> None:
    from probes.beside import KEYS

    words = ["suite=demo", "parallel.tensor=2", "parallel.sequence=true", "precision=bf16", "limit=5"]
    settings = Settings.from_keys(parse_keys(words, KEYS))
    assert settings.parallel.tensor == 2 and settings.parallel.sequence and settings.limit == 5
    config = RunConfig()
    config.probe.suite, config.probe.tokens_per_row, config.precision.compute = "own", 512, "fp32"
    completed = settings.with_run(config)
    assert (completed.suite, completed.tokens_per_row, completed.precision) == ("demo", 512, "bf16")
    with pytest.raises(ConfigError, match="precision=fp8 is unknown"):
        Settings.from_keys({"precision": "fp8"})
