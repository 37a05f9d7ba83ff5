"""Runs tasks one after the other, each in a process of its own, and keeps what is known in a file after each.

A process that runs out of memory, crashes or takes too long ends nothing but itself. The file can be gone on with:
what it holds already is not measured again, so that several short visits to a GPU make one result.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
FINAL = ("measured", "out of memory", "missing", "refused")
"""Outcomes that another try would give again."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # as torchtitan's script and our command line have it; here all
}


class Runs:
    """Outcomes by name.

    Args:
        partial: the file that is written after each, as {name: outcome}.
        resume: takes what the file holds; else it is begun anew.
        limit_seconds: of one process.
        total_seconds: no process is started when fewer than `limit_seconds / 4` of these are left; None: no limit.
    """

    def __init__(
        self, partial: Path, *, resume: bool, limit_seconds: float, total_seconds: float | None = None
    ) -> None:
        self._partial, self._limit = partial, limit_seconds
        self._end = None if total_seconds is None else time.monotonic() + total_seconds
        self.outcomes: dict[str, dict[str, Any]] = {}
        if resume and partial.exists():
            kept = json.loads(partial.read_text())
            self.outcomes = {name: outcome for name, outcome in kept.items() if outcome["status"] in FINAL}

    def run(self, name: str, module: str, task: Mapping[str, Any], *, python: str = sys.executable) -> dict[str, Any]:
        """The outcome of one task, from the file or from a new process.

        Args:
            name: names the task in the file.
            module: run as `python -m tests.bench.gpu.MODULE FOLDER`; reads `task.json`, writes `result.json`.
            task: what `task.json` holds.
            python: interpreter.
        """
        if name not in self.outcomes:
            outcome = self._outcome(module, task, python)
            self.outcomes[name] = {**outcome, "task": dict(task)}
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            written = self._partial.with_suffix(".part")
            written.write_text(json.dumps(self.outcomes, indent=1))
            written.replace(self._partial)
            print(f"{name}: {_shown(outcome)}", flush=True)
        return self.outcomes[name]

    def _outcome(self, module: str, task: Mapping[str, Any], python: str) -> dict[str, Any]:
        left = self._limit if self._end is None else min(self._limit, self._end - time.monotonic())
        if left < self._limit / 4:
            return {"status": "not run", "reason": "the time for the whole benchmark was up"}
        with tempfile.TemporaryDirectory(prefix="fineline-bench-") as name:
            folder = Path(name)
            (folder / "task.json").write_text(json.dumps(task))
            environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": _search_path()}
            begun = time.monotonic()
            with (folder / "log").open("wb") as log:
                command = [python, "-m", f"tests.bench.gpu.{module}", str(folder)]
                process = subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
                )
                try:
                    code = process.wait(timeout=left)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    code = None
            seconds, result = time.monotonic() - begun, folder / "result.json"
            end_of_log = (folder / "log").read_text(errors="replace")[-800:]
            if result.exists():
                return {**json.loads(result.read_text()), "process_seconds": seconds}
            if code is None:
                return {"status": "too slow", "reason": f"stopped after {left:.0f} s: {end_of_log}"}
            memory = "out of memory" in end_of_log.lower()
            return {"status": "out of memory" if memory else "failed", "reason": f"exit code {code}: {end_of_log}"}


def _search_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _shown(outcome: Mapping[str, Any]) -> str:
    if outcome["status"] != "measured":
        return f"{outcome['status']}: {outcome['reason'].strip().splitlines()[-1]}"
    speed = outcome.get("tokens_per_second")
    if speed is None:
        return f"measured in {outcome['process_seconds']:.0f} s"
    memory = outcome.get("peak_allocated_gib")
    return f"{speed:,.0f} tokens/s" + (f", {memory:.1f} GiB" if memory else "")
