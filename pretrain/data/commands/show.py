"""Prints what one step was trained on: source, document and text of each sample.

python -m pretrain.data show experiment=demo --step 100
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "print what one step was trained on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration, as for `python -m pretrain`")
    parser.add_argument("--step", type=int, required=True, help="optimizer step, from 1")
    parser.add_argument("--characters", type=int, default=200, help="characters of each sample that are shown")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from pretrain.config.load import compose
    from pretrain.data.inspect import render, show_step
    from pretrain.data.prepare import ensure_prepared

    config = compose(options.overrides)
    prepared = ensure_prepared(config, run_root=Path(config.run.dir), progress=print)
    for shown in show_step(config, prepared, step=options.step):
        print(render(shown, max_characters=options.characters))
    return 0
