"""A run directory for watchers, with a scorer that looks at tokens only: on one process, without a model."""

from __future__ import annotations

import dataclasses
import json
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
from pretrain.errors import CheckpointError
from probes import watch
from probes.beside import Settings
from probes.examiner import Examiner
from probes.journal import Journal
from probes.score import CheckpointFacts
from probes.store import ProbeStore
from probes.watch import Watcher


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
