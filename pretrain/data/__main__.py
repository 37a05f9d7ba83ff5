"""`python -m pretrain.data prepare|show`: tokenise a run's text ahead of time; show what a step was trained on.

python -m pretrain.data prepare experiment=demo
python -m pretrain.data show experiment=demo --step 100
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import FinelineError

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; default those of the process.

    Returns:
        The exit status: 0, or that of the error, whose message is printed.
    """
    parser = argparse.ArgumentParser(prog="python -m pretrain.data", description="Prepare and look at a run's data.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="tokenise the run's text, or check in full what is there")
    show = commands.add_parser("show", help="print what one step was trained on")
    show.add_argument("--step", type=int, required=True, help="optimizer step, from 1")
    show.add_argument("--characters", type=int, default=200, help="characters of each sample that are shown")
    options, overrides = parser.parse_known_args(arguments)
    unknown = [text for text in overrides if text.startswith("--")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}; configuration is given as KEY=VALUE")
    try:
        from pretrain.config.load import compose

        config = compose(overrides)
        if options.command == "prepare":
            _prepare(config)
        else:
            _show(config, step=options.step, max_characters=options.characters)
    except FinelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _prepare(config: RunConfig) -> None:
    from pretrain.data.manifest import verify_digests
    from pretrain.data.prepare import ensure_prepared

    prepared = ensure_prepared(config, run_root=Path(config.run.dir), progress=print)
    verify_digests(prepared.directory, prepared.manifest)
    print(f"{prepared.directory}: complete, tokenizer {prepared.tokenizer.fingerprint}")
    for name, splits in prepared.manifest["sources"].items():
        for split, counts in splits.items():
            per_token = counts["bytes"] / max(1, counts["tokens"])
            print(
                f"  {name:<16} {split:<10} {counts['documents']:>12,} documents {counts['tokens']:>16,} tokens "
                f"{per_token:5.2f} bytes/token"
            )


def _show(config: RunConfig, *, step: int, max_characters: int) -> None:
    from pretrain.data.inspect import render, show_step
    from pretrain.data.prepare import ensure_prepared

    prepared = ensure_prepared(config, run_root=Path(config.run.dir), progress=print)
    for shown in show_step(config, prepared, step=step):
        print(render(shown, max_characters=max_characters))


if __name__ == "__main__":
    sys.exit(main())
