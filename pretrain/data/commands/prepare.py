"""Tokenises a run's text ahead of time. Run again after anything that stopped it, it goes on from there.

python -m pretrain.data prepare experiment=demo
python -m pretrain.data prepare data=mine data.prepared_dir=/data/tokens --workers 32
python -m pretrain.data prepare data=mine data.prepared_dir=/data/tokens --slurm-partition cpu --slurm-time 12:00:00

With Slurm an array is submitted, a task a unit, and a job behind it that publishes the folder. The folder, the text,
this installation and the working directory must be where every node sees them. The same command run again says how far
it is, publishes what is complete, or submits what was left undone.

Where the configuration knows what is published of the data (data.sources.NAME.expected_tokens and the like), the counts
are compared in the end: a difference ends the command with exit code 1, and keeps everything that was prepared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig
    from pretrain.data.prepared import PreparedData

HELP = "tokenise the run's text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration, as for `python -m pretrain`")
    parser.add_argument("--workers", type=int, metavar="N", help="processes on this machine; default: one a core")
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--slurm-partition", metavar="P", help="submit an array to this partition instead")
    slurm.add_argument("--slurm-time", metavar="T", help="time limit of one unit, as for sbatch")
    slurm.add_argument("--slurm-tasks-at-once", type=int, metavar="N", help="units at the same time; default: all")
    slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="KEY=VALUE", help="further options of sbatch, as account=mine"
    )
    slurm.add_argument("--slurm-finish", action="store_true", help=argparse.SUPPRESS)  # the job behind the array


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from pretrain.config.load import compose
    from pretrain.data.manifest import tell_rejected
    from pretrain.data.prepare import ensure_prepared
    from pretrain.data.published import count, is_published, require_published, table

    _check(options)
    config = compose(options.overrides)
    root = Path(config.run.dir)

    def say(line: str) -> None:
        print(line, flush=True)

    if options.slurm_partition or options.slurm_finish:
        from pretrain.data.slurm import SlurmOptions, finish_array, prepare_on_slurm

        if options.slurm_finish:
            finish_array(config, run_root=root, say=say)
        else:
            sbatch = dict(entry.split("=", 1) for entry in options.sbatch)
            slurm = SlurmOptions(options.slurm_partition, options.slurm_time, options.slurm_tasks_at_once, sbatch)
            finishing = [sys.executable, "-m", "pretrain.data", "prepare", *options.overrides, "--slurm-finish"]
            if not prepare_on_slurm(config, run_root=root, options=slurm, finishing=finishing, say=say):
                return 0
    prepared = ensure_prepared(config, run_root=root, progress=say, workers=options.workers, compare=False)
    print(f"{prepared.directory}: complete, tokenizer {prepared.tokenizer.fingerprint}")
    for name, source in prepared.manifest["sources"].items():
        for split in ("train", "validation"):
            counts = source[split]
            per_token = f"{counts['bytes'] / max(1, counts['tokens']):5.2f} bytes/token" if counts["bytes"] else ""
            print(
                f"  {name:<16} {split:<10} {counts['documents']:>12,} documents {counts['tokens']:>16,} tokens "
                f"{per_token}".rstrip()
            )
        if source["rejected"]:
            print(f"  {name:<16} rejected   {tell_rejected(name, source)}")
    _warn_of_training(config, prepared)
    if is_published(config.data):
        print("\n".join(table(count(prepared.directory), config.data)))
        require_published(config.data, directory=prepared.directory)
    return 0


def _warn_of_training(config: RunConfig, prepared: PreparedData) -> None:
    """Says what a run of this configuration would warn of, or be refused for, while its text can still be changed."""
    from pretrain.data.epochs import repeated_sources, warning
    from pretrain.data.run_order import sample_order

    try:
        order = sample_order(config, prepared)
        repeated = repeated_sources(order, num_samples=config.batch_sizes.samples(config.total_steps))
        message = warning(repeated) if repeated else None
    except (ConfigError, DataError) as error:
        message = f"A run with this configuration would be refused: {error}"
    if message is not None:
        print(f"warning: {message}", file=sys.stderr)


def _check(options: argparse.Namespace) -> None:
    has_slurm = bool(options.slurm_partition)
    problems = []
    if options.workers is not None and options.workers < 1:
        problems.append(f"--workers {options.workers} must be at least 1.")
    if has_slurm and options.workers is not None:
        problems.append("--workers is for this machine; with Slurm, --slurm-tasks-at-once says how many units run.")
    if has_slurm and not options.slurm_time:
        problems.append("--slurm-partition needs --slurm-time, the time limit of one unit, for example 4:00:00.")
    extra = {"--slurm-time": options.slurm_time, "--slurm-tasks-at-once": options.slurm_tasks_at_once}
    extra |= {"--sbatch": options.sbatch}
    problems += [f"{name} needs --slurm-partition." for name, value in extra.items() if value and not has_slurm]
    if options.slurm_tasks_at_once is not None and options.slurm_tasks_at_once < 1:
        problems.append(f"--slurm-tasks-at-once {options.slurm_tasks_at_once} must be at least 1.")
    problems += [f"--sbatch {entry} is not KEY=VALUE." for entry in options.sbatch if "=" not in entry]
    if problems:
        raise ConfigError(problems)
