"""`python -m pretrain.plan experiment=amber_7b world_size=224`: the command line of plans."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.arguments import CommandParser
from pretrain.config.load import compose
from pretrain.durable import replace_file
from pretrain.errors import ConfigError, FinelineError
from pretrain.plan.plan import Plan, make_plan
from pretrain.plan.text import to_text
from pretrain.shadowed import require_own_package
from pretrain.terminal import accept_every_character

_HELP = """\
Says what a run will need: parameters and memory of its ranks, batches, checkpoints, FLOPs; on a cluster whose devices
are known also whether it fits, how long it takes, what probes cost, and which layouts fit, fastest first.

  python -m pretrain.plan experiment=amber_7b cluster=a100_80gb
  python -m pretrain.plan experiment=amber_7b cluster=h100 cluster.nodes=2 cluster.processes_per_node=8 --layouts 10
  python -m pretrain.plan experiment=k2_65b world_size=480 rank=all

Leaves with 0, with 1 if the run does not fit its devices, with 2 if it could not start.
"""
_OVERRIDES = """overrides as of `python -m pretrain`, and
world_size=N (default: cluster.nodes x cluster.processes_per_node);
rank=R, rank=R,S,… or rank=all: ranks to build (default: the first of the first, a middle and the last stage)"""


def main(arguments: Sequence[str]) -> int:
    """Runs one command line; returns the exit code."""
    accept_every_character()
    parser = CommandParser("python -m pretrain.plan", description=_HELP)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there too, in bytes")
    parser.add_argument("--layouts", type=_count, default=5, metavar="N", help="layouts to suggest (default: 5)")
    parser.add_argument("--config-dir", metavar="DIR", help="a further folder of configuration groups")
    line = parser.read(arguments)
    try:
        require_own_package()
        own = dict(text.split("=", 1) for text in line.overrides if text.startswith(("world_size=", "rank=")))
        overrides = [text for text in line.overrides if text.partition("=")[0] not in own]
        config = compose(overrides, config_dir=line.config_dir)
        size = _whole("world_size", own["world_size"])[0] if "world_size" in own else None
        rank = own.get("rank", "all")
        plan = make_plan(
            config,
            world_size=size or config.cluster.nodes * config.cluster.processes_per_node,
            ranks=_whole("rank", rank) if rank != "all" else "all" if "rank" in own else None,
            layouts=line.layouts,
        )
        if line.json is not None:
            _write(line.json, plan)
    except FinelineError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        print("\n  - ".join(["This run cannot be planned:", *problems]), file=sys.stderr)
        return error.exit_code
    print(to_text(plan), end="")
    return 0 if plan.device is None or plan.device.fits else 1


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def _whole(key: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or (key == "world_size" and (len(parts) > 1 or int(text) < 1)):
        allowed = "whole numbers separated by commas, or all" if key == "rank" else "one whole number of 1 or more"
        raise ConfigError(f"{key}={text} is not valid: give {allowed}, as {key}=8.")
    return [int(part) for part in parts]


def _write(path: Path, plan: Plan) -> None:
    try:
        replace_file(path, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written: {error.strerror}. Choose a folder that exists.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
