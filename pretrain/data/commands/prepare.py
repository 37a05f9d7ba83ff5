"""Tokenises a run's text ahead of time, or checks in full what is there.

python -m pretrain.data prepare experiment=demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "tokenise the run's text, or check in full what is there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration, as for `python -m pretrain`")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from pretrain.config.load import compose
    from pretrain.data.manifest import verify_digests
    from pretrain.data.prepare import ensure_prepared

    config = compose(options.overrides)
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
    return 0
