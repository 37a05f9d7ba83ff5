"""Scores a run's checkpoints as they are finished, from a job of its own, into the run's record.

Rank 0 decides what is next and tells the others, often, so that none waits for longer than a collective may. What
is done is what the record holds: a watcher that was killed, or a second one after it, goes on in the middle of a
suite. Training's files (`metrics.jsonl`, `events.jsonl`, checkpoints) are read only.

Beside inline probing the watcher only makes up for what training left out: a step under the plan that training
itself measures is waited for until training has gone past it. Measurements are named by step and plan, so even both
scoring the same step would leave one row of each. Where training failed to have answers written, they are written here.

A checkpoint that a rank could not score comes again after the others, and is passed over after a few attempts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.calendar import Calendar, save_steps
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.reader import CheckpointReader, folder_name
from pretrain.config.load import load_yaml, to_plain
from pretrain.config.run import RunConfig
from pretrain.data.run_order import read_order
from pretrain.engine.base import CheckpointScorer, PackedRows, TokenLogProbs
from pretrain.engine.job import Job
from pretrain.errors import CheckpointError, EngineError, ProbeError
from pretrain.locate import CHECKPOINTS, CONFIG_NAME
from pretrain.track.sink import RunInfo
from probes.beside import Settings, describe_layout, load_weights, score_in_slices
from probes.examiner import Examiner
from probes.generate import generate_texts
from probes.items import StoredSuite
from probes.journal import SCORED, Journal, read_rows
from probes.late import domains_of, show_rest
from probes.partial import PARTIAL_FOLDER, PartialAnswers
from probes.record import METRIC_MISSING
from probes.request import ProbeTokenizer
from probes.store import ProbeStore
from probes.target import Target, checkpoint_target, weights_digest
from probes.tier import GENERATING, PROBE_FAILED

UNTIL = ("finished", "forever", "now")
_LIFE = ("start", "resume", "finished", "stopped")
_LAST_LINE_BYTES = 1 << 20
_ATTEMPTS = 3
"""How often a checkpoint is tried that a rank could not score; memory may be free the next time."""


@dataclass(frozen=True, slots=True)
class Order:
    """What all ranks do next.

    Attributes:
        kind: `score`, `wait` or `end`.
        target: the checkpoint to score.
        digest: of its weights.
        generate: the model also writes the answers that the suite wants.
    """

    kind: str
    target: Target | None = None
    digest: str = ""
    generate: bool = False


class Watcher:
    """Scores one run. Every rank builds one.

    Args:
        directory: the run directory.
        job: the processes.
        scorer: for models of the run's sizes.
        rows: of the plan, on every rank.
        stored: items of the plan, on every rank.
        tokenizer: the run's, on every rank.
        generate: have every checkpoint write answers, not only the run's last one.
        examiner: on rank 0.
        settings: layout and slices.
        poll_seconds: how long to wait before looking again.
        until: `finished`: leave when the run has finished and all is scored; `now`: when all that is there is
            scored; `forever`: never.
    """

    def __init__(
        self,
        directory: Path,
        *,
        job: Job,
        scorer: CheckpointScorer,
        rows: PackedRows,
        stored: StoredSuite,
        tokenizer: ProbeTokenizer,
        examiner: Examiner | None,
        settings: Settings,
        generate: bool = False,
        poll_seconds: float,
        until: str,
    ) -> None:
        self._directory, self._job, self._scorer, self._rows = directory, job, scorer, rows
        self._stored, self._tokenizer = stored, tokenizer
        self._examiner, self._settings, self._generate = examiner, settings, generate
        self._poll_seconds, self._until = poll_seconds, until
        self._stamp = describe_layout(settings, job)
        self._passed_over: dict[int, str] = {}
        self._done: dict[int, tuple[str, bool]] = {}  # weights and whether answers were written, by step
        self._failures: dict[int, int] = {}
        self._owed: set[int] = set()  # steps at which training was to have answers written, and failed
        self._seen: set[int] = set()
        if job.rank == 0:
            self._store, self._journal = ProbeStore(directory), Journal(directory)
            self._config = load_yaml(directory / CONFIG_NAME)

    def run(self) -> None:
        """Until there is nothing left to wait for. Every rank calls it.

        Raises:
            FinelineError: on every rank; what is scored is on disk.
        """
        while True:
            order: Order = self._job.once(self._choose)
            if order.kind == "end":
                break
            if order.target is not None:
                self._score(order.target, order)
        self._job.once(self._finish)

    def _choose(self) -> Order:
        """Rank 0: the oldest checkpoint that is not scored; else waits a while."""
        ended = self._has_ended()  # before looking at checkpoints: what a finished run has saved is all there
        todo = list(self._todo())
        for step in todo:
            order = self._order(step)
            if order is not None:
                if step in self._failures:
                    time.sleep(self._poll_seconds)
                return order
        if self._until == "now" or (self._until == "finished" and ended):
            return Order("end")
        time.sleep(self._poll_seconds)
        return Order("wait")

    def _order(self, step: int) -> Order | None:
        """The work on one step; None for one that is passed over."""
        path = self._directory / CHECKPOINTS / folder_name(step)
        problem = digest = ""
        try:
            target = checkpoint_target(path)
            digest = weights_digest(CheckpointReader(path).manifest)
        except CheckpointError as error:
            problem = str(error)
        if problem:
            self._pass_over(step, problem)
            return None
        generate = self._writes(step)
        if self._passed_over.get(step) == digest or self._done.get(step) == (digest, generate):
            return None
        return Order("score", target, digest, generate=generate)

    def _writes(self, step: int) -> bool:
        """Whether a checkpoint is to write the answers that the suite wants written."""
        return self._generate or step == self._config.total_steps or step in self._owed

    def _todo(self) -> Iterator[int]:
        """Steps to score, oldest first, but those that failed last; steps whose checkpoint has gone are reported."""
        self._config = load_yaml(self._directory / CONFIG_NAME)  # a run that was extended has a longer calendar
        calendar, complete = self._calendar(), self._complete()
        there = _saved_steps(self._directory / CHECKPOINTS)
        for step in sorted(self._seen - there - complete):
            self._pass_over(step, "its checkpoint has been removed")
        self._seen = {step for step in there if calendar.is_due(step)}
        waiting = self._steps_of_training()
        for step in sorted(self._seen - complete, key=lambda step: (self._failures.get(step, 0), step)):
            if step not in waiting:
                yield step

    def _steps_of_training(self) -> set[int]:
        """Steps that inline probing may still measure under this very plan."""
        if self._config.probe.mode != "inline" or self._has_ended(stopped=True):
            return set()
        plans: list[object] = []
        for row in self._events():
            if row.get("kind") in ("start", "resume"):
                plans.clear()
            elif row.get("kind") == "probe_plan":
                plans.append(row.get("plan_hash"))  # of every tier
        if plans and self._plan_hash not in plans:
            return set()
        last = _last_step(self._directory / "metrics.jsonl")
        return {step for step in self._seen if step >= last}

    def _score(self, target: Target, order: Order) -> None:
        """One checkpoint, on all ranks."""
        digest = order.digest
        problem = load_weights(self._scorer, target, self._job)
        if problem is not None:
            self._job.once(lambda: self._pass_over(target.facts.step, problem, digest))
            return
        folder = None
        if self._job.rank == 0:
            folder = self._directory / PARTIAL_FOLDER / self._plan_hash / target.path.name
        partial = PartialAnswers(
            len(self._rows.rows),
            self._rows.num_pairs,
            folder=folder,
            stamp={"weights": digest, "layout": self._stamp, "rows": self._rows.digest},
        )
        texts = None
        try:
            scored, seconds = score_in_slices(
                self._scorer, self._rows, partial, self._job, slice_rows=self._settings.slice_rows
            )
            if order.generate and any(task.prompts for task in self._stored.tasks):
                texts = generate_texts(self._stored, self._tokenizer, self._scorer).texts
        except EngineError as error:  # the same on every rank
            failed = error
            self._job.once(lambda: self._fail(target.facts.step, str(failed), digest))
            return
        self._job.once(lambda: self._record(target, digest, partial, scored, seconds, texts))
        self._done[target.facts.step] = digest, order.generate

    def _record(
        self,
        target: Target,
        digest: str,
        partial: PartialAnswers,
        scored: TokenLogProbs,
        seconds: float,
        texts: Mapping[int, Sequence[str]] | None,
    ) -> None:
        """Rank 0: metrics of a checkpoint whose rows are all scored."""
        assert self._examiner is not None, "rank 0 has it"
        plan, step = self._examiner.plan, target.facts.step
        try:
            measurements, answers, missing = self._examiner.examine(scored, target.facts, seconds=seconds, texts=texts)
        except Exception as error:  # noqa: BLE001 (task files hold other people's code; the cause is recorded)
            self._pass_over(step, f"{type(error).__name__}: {error}", digest)
            partial.remove()
            return
        self._store.write_items(plan, answers, step=step)
        # Before the rows: were it killed between the two, nobody would show what it recorded.
        named = {"suite": plan.suite, "plan_hash": plan.plan_hash, "layout": self._stamp}
        self._journal.write(SCORED, step=step, tokens=target.facts.tokens, score_seconds=seconds, **named)
        self._store.append(measurements, missing)
        for one in missing:
            self._journal.write(METRIC_MISSING, **one.to_json())
            _say(one.sentence())
        partial.remove()
        _say(f"step {step}  scored {plan.suite} in {seconds:.1f} s, {len(measurements)} measurements")

    def _fail(self, step: int, cause: str, digest: str) -> None:
        """Reports a checkpoint that a rank could not score; it comes again after the others, a few times."""
        self._failures[step] = self._failures.get(step, 0) + 1
        if self._failures[step] >= _ATTEMPTS:
            self._pass_over(step, f"{cause} ({_ATTEMPTS} attempts; start watch again to try once more)", digest)
            return
        self._journal.write("failed", step=step, cause=cause)
        _say(f"step {step}  could not be scored and will be tried again: {cause}")

    def _pass_over(self, step: int, cause: str, digest: str = "") -> None:
        """Reports a checkpoint that cannot be scored, once; another one of the same step is looked at again."""
        known = digest or cause
        if self._passed_over.get(step) != known:
            self._passed_over[step] = known
            self._journal.write("passed_over", step=step, cause=cause)
            _say(f"step {step}  passed over: {cause}")

    def _finish(self) -> None:
        """Rank 0: says what is missing, shows what nobody has shown."""
        complete = self._complete()
        steps = [step for step in self._calendar().steps() if step not in complete and step not in self._passed_over]
        if steps and self._has_ended():
            _say(f"no checkpoint is left of the steps {', '.join(map(str, steps))}: they are not scored")
        if self._has_ended(stopped=True):
            show_rest(
                self._directory,
                self._config,
                _run_info(self._directory, self._config, self._store),
                wait_seconds=60.0,
                say=_say,
            )

    @property
    def _plan_hash(self) -> str:
        assert self._examiner is not None, "rank 0 has it"
        return self._examiner.plan.plan_hash

    def _complete(self) -> set[int]:
        assert self._examiner is not None, "rank 0 has it"
        plan = self._examiner.plan
        failed = PROBE_FAILED, GENERATING, plan.suite
        found = [row for row in self._events() if (row.get("kind"), row.get("part"), row.get("suite")) == failed]
        self._owed = {int(str(row["step"])) for row in found}
        self._store.refresh()
        scored, written = (self._store.complete_steps(plan, written=also) for also in (False, True))
        return {step for step in scored if step in written or not self._writes(step)}

    def _calendar(self) -> Calendar:
        config = self._config
        ends = read_order(self._directory).chunk_ends if config.data.order == "chunked" else ()
        return save_steps(config, chunk_ends=ends)

    def _events(self) -> list[dict[str, object]]:
        return read_rows(self._directory / "events.jsonl")

    def _has_ended(self, *, stopped: bool = False) -> bool:
        """Whether the run has finished, or at least (`stopped`) left."""
        last = next((row["kind"] for row in reversed(self._events()) if row.get("kind") in _LIFE), None)
        return last == "finished" or (stopped and last == "stopped")


def _saved_steps(root: Path) -> set[int]:
    """Steps with a checkpoint folder; they appear under these names only when they are complete."""
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    found = {int(name.removeprefix("step_")) for name in names if name.removeprefix("step_").isdigit()}
    return {step for step in found if folder_name(step) in names}


def _last_step(path: Path) -> int:
    """The newest step in a record; -1 if there is none."""
    if not path.is_file():
        return -1
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LAST_LINE_BYTES))
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):
        at = line.find(b'"step": ')
        digits = line[at + 8 : at + 28].split(b",")[0].strip(b" }")
        if at >= 0 and digits.isdigit():
            return int(digits)
    return -1


def _run_info(directory: Path, config: RunConfig, store: ProbeStore) -> RunInfo:
    """What views want to know; the run is at its end."""
    from pretrain.config.load import config_hash

    return RunInfo(
        directory=directory,
        name=config.run.name,
        config=to_plain(config),
        config_hash=config_hash(config),
        total_steps=config.total_steps,
        resume_step=max(_last_step(directory / "metrics.jsonl"), 0),
        domains=domains_of(store.measurements),
    )


def wait_for_run(directory: Path, *, until: str, poll_seconds: float, say: Callable[[str], None]) -> Target | None:
    """The first checkpoint that can be read, which says what model the run is of. Call it on rank 0, repeatedly.

    Returns:
        None after having waited `poll_seconds` for one.

    Raises:
        ProbeError: there is none, and none is to come.
    """
    for step in sorted(_saved_steps(directory / CHECKPOINTS)):
        path = directory / CHECKPOINTS / folder_name(step)
        try:
            Manifest.read(path)
            return checkpoint_target(path)
        except CheckpointError as error:
            say(f"step {step}  {error}")
    kinds = [row.get("kind") for row in read_rows(directory / "events.jsonl") if row.get("kind") in _LIFE]
    if until == "now" or (until == "finished" and kinds[-1:] == ["finished"]):
        raise ProbeError(f"{directory} has no checkpoint that can be read, and none is to come.")
    time.sleep(poll_seconds)
    return None


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
