"""What `probe.budget` really costs: a whole run with thirty saves, its wall time, and what probing took of it.

`python -m tests.bench.probe_budget [--quick] --json FILE` trains the demo on two processes with `probe.budget=1%` and a
suite whose fast tier fits into that, and reads the run's own record afterwards. The share is what scoring, measuring
and the first calibration took, over the time from the run's first event to its last; preparing data and compiling the
plan are no part of either. Also in the file: what was scored at how many saves.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.result import describe_machine, is_quiet, package_versions, write_result

_SUITE = """\
tasks:
  - {task: fineline_blimp, domain: linguistics, limit: 120, fast: 30}
  - {task: fineline_piqa, domain: commonsense, limit: 60, fast: 6}
  - {task: fineline_arc_easy, domain: knowledge, limit: 60, fast: 6}
"""
SAVES = 30


def run_demo(folder: Path, *, steps: int, budget: str) -> Path:
    """Trains; returns the run's directory."""
    (folder / "suite.yaml").write_text(_SUITE)
    every = steps // (SAVES - 1)
    overrides = [
        "experiment=demo",
        f"run.dir={folder}",
        "run.name=budget",
        f"train.steps={every * (SAVES - 1)}",
        f"checkpoint.every={every} steps",
        "checkpoint.early=[0]",
        "checkpoint.keep=2",
        "checkpoint.export=none",
        f"probe.suite={folder / 'suite.yaml'}",
        f"probe.budget={budget}",
        "track=[jsonl]",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pretrain"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    subprocess.run([*launcher, *overrides], check=True, env=environment, cwd=folder)
    return folder / "budget"


def figures_of(run: Path) -> dict[str, Any]:
    """What the record says of its probes."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    choices = [event for event in events if event["kind"] == "probe_budget"]
    began, ended = (next(event for event in events if event["kind"] == kind)["time"] for kind in ("start", "finished"))
    seconds = ended - began
    # The last choice knows all that was spent before it; what it chose itself is an event of its own.
    after = [event for event in events if event["kind"] == "probe" and event["step"] == choices[-1]["step"]]
    spent = choices[-1]["spent_seconds"] + sum(event["seconds"] for event in after)
    return {
        "saves": len(choices),
        "run_seconds": seconds,
        "probe_seconds": spent,
        "share": spent / seconds,
        "scored": dict(collections.Counter(choice["scored"] for choice in choices)),
        "scored_at_steps": {
            name: [choice["step"] for choice in choices if choice["scored"] == name] for name in ("fast", "full")
        },
    }


def main(arguments: list[str]) -> None:
    """Runs and writes the result."""
    parser = argparse.ArgumentParser("python -m tests.bench.probe_budget", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="290 steps instead of 870")
    parser.add_argument("--budget", default="1%")
    parser.add_argument("--json", type=Path, required=True)
    line = parser.parse_args(arguments)
    machine = describe_machine(threads=1)
    is_quiet(machine)
    with tempfile.TemporaryDirectory() as folder:
        run = run_demo(Path(folder), steps=290 if line.quick else 870, budget=line.budget)
        figures = {"budget": line.budget, **figures_of(run)}
    print(json.dumps(figures, indent=2))
    write_result(
        line.json,
        name="probe_budget",
        figures=figures,
        command=f"python -m tests.bench.probe_budget --budget {line.budget}{' --quick' if line.quick else ''}",
        machine=machine,
        versions=package_versions(["torch", "megatron-core", "lm-eval"]),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
