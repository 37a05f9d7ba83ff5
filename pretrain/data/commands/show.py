"""Prints what one step of a run was trained on: source, documents and text of each sample.

python -m pretrain.data show runs/demo --step 100
python -m pretrain.data show runs/demo --step 100 --rank 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pretrain.arguments import count_of

HELP = "print what one step was trained on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("run_directory", metavar="RUN", type=Path, help="directory of the run")
    parser.add_argument("--step", type=count_of("steps"), required=True, help="optimizer step, from 1")
    parser.add_argument("--rank", type=int, help="what this process read; default: the whole batch")
    parser.add_argument("--characters", type=int, default=200, help="characters of each sample that are shown")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from pretrain.data.inspect import render, show_step
    from pretrain.locate import run_of

    for shown in show_step(run_of(options.run_directory), step=options.step, rank=options.rank):
        print(render(shown, max_characters=options.characters))
    return 0
