"""What a training step costs beyond forward, backward and AdamW: ours, Hugging Face Trainer's and litgpt's.

Run from the repository's root on a quiet machine (about ten minutes; `--quick` about two):

    python -m tests.bench.step_overhead --json tests/bench/results/step_overhead.json

Each contender is measured against a bare loop over its own model on the same shapes and threads, so that the speed of
the model does not count. The two loops take turns step by step within one process (`steps/turns.py`); contenders take
turns round by round, each round a fresh process. A round's overhead is the median of its paired differences; the
figures are medians over rounds. Every contender reports its loss at every step: we and litgpt write a row per step to
a file, Trainer prints it. Beside that, Trainer is measured with its default of one report in 500 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.result import describe_machine, is_quiet, package_versions, ratio, spread, write_result
from tests.bench.steps.turns import Plan, Shape

_ROOT = Path(__file__).parents[2]
_LITGPT = "litgpt==0.5.9"
_THREADS = 1

Row = Mapping[str, Sequence[float]]
"""One pair of steps: `framework` and `bare`, each [wall, CPU] milliseconds."""


def main() -> None:
    arguments = _arguments()
    machine = describe_machine(threads=_THREADS)
    is_quiet(machine)
    litgpt_python, reason = (arguments.litgpt_python, None) if arguments.litgpt_python else _litgpt_environment()
    plan, num_rounds = (
        (Plan(warmup_steps=10, steps=60), 2) if arguments.quick else (Plan(warmup_steps=20, steps=300), 7)
    )
    contenders = {
        "ours": (sys.executable, "ours", 1),
        "hf_trainer": (sys.executable, "hf_trainer", 1),
        "hf_trainer_default_logging": (sys.executable, "hf_trainer", 500),
    }
    if litgpt_python:
        contenders["litgpt"] = (litgpt_python, "litgpt_fit", 1)
    rounds: dict[str, list[list[Row]]] = {name: [] for name in contenders}
    failures = {} if reason is None else {"litgpt": reason}
    versions = package_versions(["torch"])
    for number in range(num_rounds):
        for name, (python, module, hf_logging_steps) in contenders.items():
            if name in failures:
                continue
            result = _contend(python, module, plan, hf_logging_steps)
            if isinstance(result, str):
                failures[name] = result
                continue
            rounds[name].append(result["rows"])
            versions |= result["versions"]
            shown = overhead([result["rows"]])
            print(f"round {number + 1}/{num_rounds}  {name}: {shown['overhead_ms']['median']:.2f} ms", flush=True)
    if "ours" in failures:
        raise SystemExit(failures["ours"])
    measured = {name: overhead(rows) for name, rows in rounds.items() if name not in failures}
    figures = compare(measured, failures) | {
        "settings": {"rounds": num_rounds, "threads": _THREADS, **asdict(plan), "shape": asdict(Shape())}
    }
    write_result(
        arguments.json,
        name="step_overhead",
        figures=figures,
        command=shlex.join(["python", "-m", "tests.bench.step_overhead", *_shown(sys.argv[1:])]),
        machine=machine,
        versions=versions,
    )
    print(json.dumps({key: figures[key] for key in ("framework_ms_per_step", "over_hf_trainer", "over_litgpt")}))


def overhead(rounds: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """What a framework adds to a step.

    Args:
        rounds: the pairs of steps of each round.

    Returns:
        Medians over rounds, in milliseconds: `framework_ms` and `bare_ms` of a step, `overhead_ms` with quartiles over
        rounds, of each round's median paired difference, and the same as `overhead_cpu_ms`.
    """

    def medians(values: Any, axis: int) -> list[float]:
        return [statistics.median(values(row, axis) for row in rows) for rows in rounds]

    def difference(row: Row, axis: int) -> float:
        return row["framework"][axis] - row["bare"][axis]

    return {
        "framework_ms": statistics.median(medians(lambda row, axis: row["framework"][axis], 0)),
        "bare_ms": statistics.median(medians(lambda row, axis: row["bare"][axis], 0)),
        "overhead_ms": spread(medians(difference, 0)),
        "overhead_cpu_ms": spread(medians(difference, 1)),
    }


def compare(measured: Mapping[str, Mapping[str, Any]], failures: Mapping[str, str]) -> dict[str, Any]:
    """The figures: ours, and ours over each peer's; null with a reason under `missing` where a peer did not run."""

    def over(peer: str, kind: str) -> float | None:
        return ratio(measured["ours"][kind]["median"], measured[peer][kind]["median"] if peer in measured else None)

    figures: dict[str, Any] = {"framework_ms_per_step": measured["ours"]["overhead_ms"]["median"]}
    figures["framework_cpu_ms_per_step"] = measured["ours"]["overhead_cpu_ms"]["median"]
    missing = {}
    for peer in ("hf_trainer", "hf_trainer_default_logging", "litgpt"):
        figures[f"over_{peer}"] = over(peer, "overhead_ms")
        figures[f"over_{peer}_cpu"] = over(peer, "overhead_cpu_ms")
        if figures[f"over_{peer}"] is None:
            missing[f"over_{peer}"] = failures.get(
                peer, "the peer's overhead was not above 0: the machine was not quiet"
            )
    return figures | {"contenders": dict(measured), "missing": missing}


def _contend(python: str, module: str, plan: Plan, hf_logging_steps: int) -> dict[str, Any] | str:
    """One round of one contender; the end of its error output when it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = {
            "threads": _THREADS,
            "shape": asdict(Shape()),
            "plan": asdict(plan),
            "hf_logging_steps": hf_logging_steps,
        }
        (folder / "job.json").write_text(json.dumps(job))
        environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": str(_THREADS), "HF_HUB_OFFLINE": "1"}
        with (folder / "log").open("wb") as log:
            command = [python, "-m", f"tests.bench.steps.{module}", str(folder)]
            done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            return f"{module} ended with code {done.returncode}: {(folder / 'log').read_text(errors='replace')[-500:]}"
        return json.loads((folder / "rows.json").read_text())


def _litgpt_environment() -> tuple[str | None, str | None]:
    """Its Python, built at the first call into the user's cache; or the reason why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fineline" / "bench" / _LITGPT
    python = cache / "bin" / "python"
    ready = cache / "ready"
    if ready.exists():
        return str(python), None
    print(f"making an environment for litgpt in {cache} ...", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(cache)],
        [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "-c",
            str(_ROOT / "launch" / "constraints.txt"),
            "torch",
            _LITGPT,
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, f"litgpt could not be installed: {done.stderr[-500:]}"
    ready.touch()
    return str(python), None


def _shown(arguments: Sequence[str]) -> list[str]:
    """The command line without the place of an environment, which is this machine's business."""
    hidden = {index for index, one in enumerate(arguments) if one == "--litgpt-python"}
    return ["PYTHON" if index - 1 in hidden else one for index, one in enumerate(arguments)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that everything runs")
    parser.add_argument("--litgpt-python", help="Python of an environment with litgpt; made in a cache if not given")
    return parser.parse_args()


if __name__ == "__main__":
    main()
