"""Every figure that is claimed of `probes.dynamics`, on published runs: `python -m tests.bench.dynamics --json FILE`.

Sections are files beside this one. `--section NAME` runs some of them anew and keeps what the file has of the others.
`--table` prints the tables of a result file, which is how they come into the README. Nothing is fitted to pass: priors
and thresholds are in the product.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.result import describe_machine, is_quiet, package_versions, write_result

SECTIONS = {
    "finals": "Final scores of Pythia from a share of the tokens, mean of 0 and 5 shots: 1.4B to 12B with references, "
    "410M to 12B from their own past (* three checkpoints at 30%, four at 51%); held out is deduplicated data, "
    "settings were chosen on standard data",
    "unseen": "A task unseen, from its siblings and the loss",
    "transfer": "Whole curves of sizes unseen",
    "similarity": "Are dynamics alike across sizes",
    "trust": "Which tasks can be trusted, Pythia",
    "state": "Verdicts on healthy runs and on faults put into them, each run left out of what it is held against",
    "ladder": "Scaling laws on the OLMo ladder: bits per byte and accuracy of the 7B from 190M to 1B",
    "gadre": "Scaling laws from final models alone: Gadre et al.'s 1.4B and 6.9B from those up to 411M",
    "schedules": "Losses under one learning-rate schedule from another",
    "scale": "200 runs × 150 checkpoints × 100 tasks",
}

OLDER = "older_pythia"
OLDER_SECTIONS = {
    "older_finals": "Final scores of older Pythia runs, on which no setting was chosen: 1.4B to 12B with references",
    OLDER: "Older Pythia runs, on which no setting was chosen: verdicts",
}
EVERY_SECTION = SECTIONS | OLDER_SECTIONS
"""With those that need a folder of their own."""


def run(names: Sequence[str], *, quick: bool, older: Path | None = None) -> dict[str, Any]:
    """Figures of these sections, each with the seconds it took."""
    found: dict[str, Any] = {}
    for name in names:
        start = time.perf_counter()
        options = {"folder": older} if name in OLDER_SECTIONS else {}
        figures = dict(importlib.import_module(f"tests.bench.dynamics.{name}").figures(quick=quick, **options))
        found[name] = figures | {"seconds": time.perf_counter() - start}
        print(f"\n{name}, {found[name]['seconds']:.0f} s\n\n{table_of(name, figures)}", flush=True)
    return found


def table_of(name: str, figures: Any) -> str:
    """A section's Markdown table."""
    return str(importlib.import_module(f"tests.bench.dynamics.{name}").table(figures))


def readme(figures: Mapping[str, Any]) -> str:
    """All tables, each under its title: what stands in the README between its markers."""
    parts = [
        f"**{title}**\n\n{table_of(name, figures[name])}" for name, title in EVERY_SECTION.items() if name in figures
    ]
    return "\n\n".join(parts)


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The figures by which this benchmark is known, of the sections that were run."""
    known = {
        "final_mae": ("finals", "final_mae"),
        "final_best_baseline_mae": ("finals", "final_best_baseline_mae"),
        "coverage_80": ("finals", "coverage_80"),
        "leave_one_out_ratio": ("unseen", "leave_one_out_ratio"),
        "size_transfer_ratio": ("transfer", "size_transfer_ratio"),
        "gadre_loss_error": ("gadre", "loss_error"),
        "gadre_loss_published_law_error": ("gadre", "loss_published_law_error"),
        "gadre_loss_line_error": ("gadre", "loss_line_error"),
        "gadre_loss_coverage_80": ("gadre", "loss_coverage_80"),
    }
    return {key: found[section][name] for key, (section, name) in known.items() if section in found}


def main(arguments: list[str]) -> None:
    """Runs and writes the result, or prints the tables of one."""
    parser = argparse.ArgumentParser("python -m tests.bench.dynamics", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sets and draws")
    parser.add_argument("--section", action="append", choices=list(EVERY_SECTION), help="only these")
    parser.add_argument(
        "--older-pythia", type=Path, metavar="FOLDER", help="evals/pythia-v0 of a clone of EleutherAI/pythia: only its"
    )
    parser.add_argument("--table", action="store_true", help="print the tables of the file instead")
    parser.add_argument("--json", type=Path, required=True)
    line = parser.parse_args(arguments)
    if line.table:
        figures = json.loads(line.json.read_text())["figures"]
        print(readme(figures))
        return
    names = line.section or list(OLDER_SECTIONS if line.older_pythia else SECTIONS)
    if not line.older_pythia and (need := [name for name in names if name in OLDER_SECTIONS]):
        parser.error(
            f"--section {need[0]} needs --older-pythia FOLDER: evals/pythia-v0 of a clone of EleutherAI/pythia"
        )
    machine = describe_machine(threads=1)
    is_quiet(machine)
    kept = json.loads(line.json.read_text())["figures"] if names != list(SECTIONS) and line.json.exists() else {}
    found = {name: kept[name] for name in EVERY_SECTION if name in kept}
    found |= run(names, quick=line.quick, older=line.older_pythia)
    write_result(
        line.json,
        name="dynamics",
        figures=headline(found) | found,
        command=f"python -m tests.bench.dynamics{' --quick' if line.quick else ''}",
        machine=machine,
        versions=package_versions(["numpy", "scipy", "pyarrow"]),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
