"""Fetches the data sets of a suite, for machines without a network; runs read them with `probe.data_dir=FOLDER`.

  python -m probes prefetch suite=amber data_dir=/data/evals

Arguments:
  suite=NAME          a suite of configs/probes, or the path of one
  data_dir=FOLDER     where to: <dataset_path>/<dataset_name or "default">/<split>.parquet; what is there is kept
  task_paths=[A,B]    folders with further task files
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pretrain.errors import ConfigError
from probes.commands.arguments import parse_keys

HELP = "fetch the data sets of a suite where there is a network"

_KEYS = {"suite": "path", "data_dir": "path", "task_paths": "list of paths"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="see above")


def run(options: argparse.Namespace) -> int:
    """Fetches what is not there.

    Raises:
        FinelineError: arguments that are wrong or missing, or data sets that cannot be fetched.
    """
    keys = parse_keys(options.arguments, _KEYS)
    missing = [f"{key}= is missing. {what}." for key, what in _NEEDED.items() if key not in keys]
    if missing:
        raise ConfigError(missing)
    # `datasets` reads these when it is imported, and elsewhere we keep it offline.
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "0")
    from probes.prefetch import prefetch
    from probes.suite import load_suite

    prefetch(load_suite(keys["suite"]), Path(keys["data_dir"]), task_paths=keys.get("task_paths", []))
    print(f"A run uses them with probe.data_dir={Path(keys['data_dir']).resolve()}")
    return 0


_NEEDED = {"suite": "Name a suite", "data_dir": "Give the folder that data sets are put into"}
