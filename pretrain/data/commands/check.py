"""Reads a prepared folder whole: every digest, every token id, every index; and counts what it holds.

Given a configuration, the counts are compared with those published of the data (data.sources.NAME.expected_tokens and
the like); a difference ends the command with exit code 1.

python -m pretrain.data check /data/tokens
python -m pretrain.data check data=mine data.prepared_dir=/data/tokens
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import ConfigError, DataError
from pretrain.locate import expand_path

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig

HELP = "check a prepared folder in full"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("given", nargs="+", metavar="FOLDER|KEY=VALUE", help="a folder, or a run's configuration")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from pretrain.config.load import compose
    from pretrain.data.files import is_remote
    from pretrain.data.manifest import read_manifest, tell_rejected
    from pretrain.data.prepared import check_folder
    from pretrain.data.published import count, require_published, table

    keys = [given for given in options.given if "=" in given and not is_remote(given) and not Path(given).exists()]
    if keys and len(keys) < len(options.given) or len(options.given) > 1 and not keys:
        raise ConfigError(f"Give one folder, or KEY=VALUE only, not {' '.join(options.given)}.")
    config = compose(keys) if keys else None
    directory = _folder_of(config, keys) if config is not None else (expand_path(options.given[0]).rstrip("/") or "/")
    check_folder(directory, full=True, say=lambda line: print(line, flush=True))
    print(f"{directory}: whole; every digest and every token id is right")
    print("\n".join(table(count(directory), config.data if config is not None else None)))
    for name, source in read_manifest(directory)["sources"].items():
        if source["rejected"]:
            print(f"{name}: rejected when it was prepared: {tell_rejected(name, source)}")
    if config is not None:
        require_published(config.data, directory=directory)
    return 0


def _folder_of(config: RunConfig, overrides: list[str]) -> Path | str:
    """The folder a configuration stands for, whose text and settings it must have been made from."""
    from pretrain.data.manifest import check_matches, check_text, find_text, fingerprint, read_manifest
    from pretrain.data.prepared import given_tokenizer, is_prepared

    given = given_tokenizer(config)
    directory: Path | str | None = config.data.prepared_dir
    if directory is None:
        name = fingerprint(config, files=find_text(config.data), tokenizer=given)
        directory = Path(config.run.dir) / "prepared" / name
    if not is_prepared(directory):
        raise DataError(
            f"{directory} is not prepared yet. Run: python -m pretrain.data prepare {shlex.join(overrides)}"
        )
    check_matches(read_manifest(directory), config, directory=directory, given=given)
    for doubt in check_text(config, directory=directory):
        print(doubt)
    return directory
