"""Slices, and what a watcher does with a run: on one process, with a scorer that looks at tokens only."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.config.load import to_yaml
from pretrain.config.run import RunConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import PackedRows, TokenLogProbs
from pretrain.errors import CheckpointError, ConfigError, EngineError, ProbeError
from pretrain.locks import Held
from probes import watch
from probes.beside import Settings, score_in_slices, select_rows
from probes.commands.arguments import parse_keys
from probes.examiner import Examiner, results_table
from probes.hook import ProbeHook
from probes.journal import SCORED, Journal
from probes.late import TRAINING_LOCK, LateScoresHook, show_unshown
from probes.partial import PartialAnswers
from probes.plan import Plan
from probes.score import CheckpointFacts
from probes.store import ProbeStore
from probes.suite import load_suite
from probes.watch import Watcher
from tests.unit.probes.conftest import write_task
from tests.unit.probes.test_hook import make_run, save_at


class Job:
    rank, world_size = 0, 1
    device = SimpleNamespace(type="cpu")

    def once(self, work: Callable[[], Any]) -> Any:
        return work()

    def everywhere(self, work: Callable[[], Any], *, what: str) -> Any:
        return work()

    def broadcast(self, value: Any) -> Any:
        return value


class Scorer:
    """Gives every pair a number of its own tokens and of the weights; may stop like a killed process."""

    def __init__(self) -> None:
        self.weights = 0
        self.calls: list[int] = []
        self.killed_after: int | None = None

    def load(self, source: int) -> None:
        if source < 0:
            raise CheckpointError("layer 3 is damaged")
        self.weights = source

    def score(self, rows: PackedRows) -> TokenLogProbs:
        if self.killed_after is not None and len(self.calls) >= self.killed_after:
            raise KeyboardInterrupt
        self.calls.append(len(rows.rows))
        log_prob = np.full(rows.num_pairs, np.nan)
        for row in rows.rows:
            seed = [self.weights, *row.tokens_S.tolist()]
            log_prob[row.pair_id_P] = -np.random.default_rng(seed).exponential(1.0, len(row.pair_id_P))
        return TokenLogProbs(log_prob, log_prob > -1)


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "two.yaml"
    path.write_text("tasks:\n- {task: t_word, domain: language}\n- {task: t_blank, domain: choice}\n")
    return path


@pytest.fixture(scope="module")
def examiner(suite_file: Path, task_folder: Path, tokenizer: Tokenizer) -> Examiner:
    settings = Settings(suite=str(suite_file), task_paths=[str(task_folder)], tokens_per_row=128)
    return Examiner(settings, tokenizer, max_length=256, add_bos=False, cache=suite_file.parent / "plans")


class FakeRun:
    """A run directory whose checkpoints are files that hold a number, the weights."""

    def __init__(self, directory: Path, examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.examiner, self.scorer = directory, examiner, Scorer()
        self.tokenizer: Tokenizer | None = None  # asked only where answers are written
        self.config = RunConfig()
        self.config.train.steps, self.config.probe.mode = 40, "beside"
        self.config.checkpoint.early, self.config.checkpoint.every = [0], "10 steps"
        directory.mkdir()
        self.write_config()
        self.event("start", 0)
        monkeypatch.setattr(watch, "checkpoint_target", self._target)
        monkeypatch.setattr(watch, "CheckpointReader", lambda path: SimpleNamespace(manifest=path))
        monkeypatch.setattr(watch, "weights_digest", lambda path: (path / "weights").read_text())
        monkeypatch.setattr(watch.time, "sleep", self._sleep)
        self.meanwhile: list[Callable[[], None]] = []

    def write_config(self) -> None:
        (self.directory / "config.yaml").write_text(to_yaml(self.config))

    def event(self, kind: str, step: int, **fields: Any) -> None:
        with (self.directory / "events.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **fields}) + "\n")

    def metrics_at(self, step: int) -> None:
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "tokens": step * 100}) + "\n")

    def save(self, *steps: int, weights: int | None = None) -> None:
        for step in steps:
            folder = self.directory / "checkpoints" / f"step_{step:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights").write_text(str(step + 1 if weights is None else weights))

    def watcher(self, until: str = "finished", slice_rows: int = 64, *, generate: bool = False) -> Watcher:
        return Watcher(
            self.directory,
            job=Job(),  # type: ignore[arg-type]
            scorer=self.scorer,
            rows=self.examiner.plan.rows,
            stored=self.examiner.plan.stored,
            tokenizer=self.tokenizer,  # type: ignore[arg-type]
            examiner=self.examiner,
            generate=generate,
            settings=Settings(slice_rows=slice_rows),
            poll_seconds=1.0,
            until=until,
        )

    def rows(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) | {"seconds": 0} for row in ProbeStore(self.directory).measurements]

    def steps(self) -> list[int]:
        return list(dict.fromkeys(row["step"] for row in self.rows()))

    def journal(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in Journal(self.directory).rows() if row["kind"] == kind]

    def _target(self, path: Path) -> Any:
        if not (path / "weights").exists():
            raise CheckpointError(f"{path}: there is none")
        step, weights = int(path.name[5:]), int((path / "weights").read_text())
        facts = CheckpointFacts(run="r", step=step, tokens=step * 100, flops=step * 600.0, config_hash="c")
        return SimpleNamespace(path=path, facts=facts, open=lambda: weights)

    def _sleep(self, seconds: float) -> None:
        assert self.meanwhile, "the watcher waits for nothing"
        self.meanwhile.pop(0)()


@pytest.fixture
def run(tmp_path: Path, examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    return FakeRun(tmp_path / "run", examiner, monkeypatch)


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
