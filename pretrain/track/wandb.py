"""Weights & Biases; the only file that imports wandb. Offline unless WANDB_MODE or WANDB_API_KEY say otherwise.

A run keeps one id over all its restarts (`<run>/wandb/run_id`), so its curves continue. W&B's step is the
training step and the x axis is tokens; scores have an x axis of their own, the tokens of their checkpoint, because
those made beside training come late: W&B takes no row of an earlier step, and one score of a name in a row, so that a
late checkpoint gets the next row that has none. After a crash the steps since the last save are logged again: online,
those W&B has are left out; offline, `wandb sync` uploads the segments in order and the overlap is drawn twice,
with the same values, since a resumed run repeats them.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.config.track import WandbConfig
from pretrain.durable import replace_file
from pretrain.track import names
from pretrain.track.sink import RunInfo


class WandbSink:
    """Logs a run to W&B.

    Args:
        config: project, entity and tags.
    """

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None
        self._first_step = 0
        self._step = 0
        self._scores_step = -1
        self._scores: list[dict[str, float]] = []
        self._defined: set[str] = set()

    def open(self, info: RunInfo) -> None:
        """Starts or continues the run; offline, no connection is tried."""
        mode: Any = _mode()
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # Read at import; would open a connection.
        import wandb

        folder = info.directory / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            tags=list(self._config.tags) or None,
            name=info.name,
            id=_run_id(folder),
            resume="allow",
            mode=mode,
            dir=str(info.directory),
            config={**info.config, "config_hash": info.config_hash},
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_save_requirements=False,
            ),
        )
        for axis in ("tokens", names.PROBE_TOKENS):
            self._run.define_metric(axis, hidden=True)
        self._run.define_metric("*", step_metric="tokens")
        self._first_step = int(self._run.step or 0)
        self._step = max(self._first_step, info.resume_step)
        if mode == "online" and self._run.url:
            print(f"W&B: {self._run.url}", file=sys.stderr, flush=True)

    def log(self, values: Mapping[str, float], *, step: int, tokens: int) -> None:
        """Adds values to the row of `step`; W&B sends it when the next step begins.

        Scores may be of an earlier step, or of one W&B has: they join the first row that has no scores.
        """
        scores = {name: value for name, value in values.items() if names.parse_probe_name(name)}
        others = {name: value for name, value in values.items() if name not in scores}
        if others and step >= self._first_step:
            self._run.log({**others, "tokens": tokens}, step=step)
        self._step = max(self._step, step)
        if scores:
            self._scores.append({**scores, names.PROBE_TOKENS: tokens})
        self._place_scores()

    def event(self, kind: str, fields: Mapping[str, Any], *, step: int) -> None:
        """Alerts on faults and warnings, for whoever has W&B alerts switched on; other events are not shown."""
        if kind == "fault":
            self._run.alert(title=f"{kind} at step {step}", text=", ".join(f"{k}: {v}" for k, v in fields.items()))
        elif "warning" in fields:
            self._run.alert(title=f"{kind.replace('_', ' ')} at step {step}", text=str(fields["warning"]))

    def close(self) -> None:
        """Sends what is left and finishes the run; a second call does nothing."""
        if self._run is not None:
            while self._scores:  # rows of their own
                self._step += 1
                self._place_scores()
            self._run.finish()
            self._run = None

    def _place_scores(self) -> None:
        if not self._scores or self._scores_step == self._step:
            return
        scores = self._scores.pop(0)
        for name in scores.keys() - self._defined - {names.PROBE_TOKENS}:
            # By its whole name: of two patterns that fit, W&B takes either (core/internal/runmetric, a map's order).
            self._run.define_metric(name, step_metric=names.PROBE_TOKENS)
            self._defined.add(name)
        self._run.log(scores, step=self._step)
        self._scores_step = self._step


def _mode() -> str:
    """The user's WANDB_MODE; else online with an API key and offline without."""
    chosen = os.environ.get("WANDB_MODE")
    return chosen or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


def _run_id(folder: Path) -> str:
    """The id of the run, made at its first start."""
    path = folder / "run_id"
    if path.exists() and (known := path.read_text(encoding="utf-8").strip("\0\n ")):  # zeros: a crash left them
        return known
    fresh = secrets.token_hex(4)
    replace_file(path, fresh + "\n")
    return fresh
