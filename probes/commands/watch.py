"""Scores every finished checkpoint of a run beside it, into the run's own record, at the right step and tokens.

  python -m probes watch runs/demo
  python -m probes watch runs/demo suite=openllama until=forever poll_seconds=60
  python -m pretrain.torchrun --nproc-per-node 8 -m probes watch runs/big parallel.tensor=8 parallel.sequence=true

A job of its own, started before, during or after training, on other processes or another machine with the same
disk. What is not given is as in the run's configuration, the layout excepted. It may be killed at any time and
started again: it goes on where it was. until=finished (the default) leaves when the run has finished and all is
scored; until=now when all that is there is scored; until=forever never. Answers that a suite wants written are
generated from the run's last checkpoint; generate=true has every one write them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import ConfigError, ProbeError
from probes.commands.arguments import parse_keys

if TYPE_CHECKING:
    from pretrain.engine.job import Job
    from probes.beside import Settings
    from probes.examiner import Examiner
    from probes.target import Target

HELP = "score a run's checkpoints as they come, from a job of its own"

_OWN_KEYS = {"poll_seconds": "whole number", "until": "text", "generate": "flag"}
_LOCK_FILE = ".watch.lock"
_POLL_SECONDS = 15
_TIMEOUT_MINUTES = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a run directory, such as runs/demo")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="suite=, parallel.tensor=, until=, …")


def run(options: argparse.Namespace) -> int:
    """Watches the run. Every process of the job runs it.

    Raises:
        FinelineError: what the user can mend.
    """
    from pretrain.engine.job import Job
    from pretrain.locate import CONFIG_NAME
    from pretrain.locks import Held
    from probes.beside import KEYS, Settings
    from probes.commands.report import run_directory

    values = parse_keys(options.settings, {**KEYS, **_OWN_KEYS})
    settings, until, poll_seconds = Settings.from_keys(values), _until(values), _poll_seconds(values)
    directory = run_directory(options.run_directory).resolve()
    if not (directory / CONFIG_NAME).is_file():
        raise ProbeError(f"{directory} has no {CONFIG_NAME}: start the run first, then watch it.")
    job = Job(timeout_minutes=_TIMEOUT_MINUTES)
    lock = Held(directory / _LOCK_FILE)

    def take() -> None:
        try:
            is_mine = lock.take()
        except OSError as error:
            raise ProbeError(f"{directory} cannot be locked: {error}. Check the disk's permissions.") from error
        if not is_mine:
            raise ProbeError(
                f"{directory} is being watched by {lock.holder()} already. End that one first; two would score the "
                f"same checkpoints."
            )

    try:
        job.once(take)
        return _watch(directory, settings, until, poll_seconds, job, generate=bool(values.get("generate")))
    finally:
        lock.release()
        job.close()


def _watch(directory: Path, settings: Settings, until: str, poll_seconds: int, job: Job, *, generate: bool) -> int:
    from pretrain.data.tokenizer import Tokenizer
    from probes.beside import open_scorer
    from probes.watch import Watcher, wait_for_run

    target: Target | None = None
    while target is None:
        target = job.once(lambda: wait_for_run(directory, until=until, poll_seconds=poll_seconds, say=_say))
    assert target.config is not None, "the run directory has its config.yaml"
    settings = settings.with_run(target.config)
    (rows, stored, model), examiner = _prepare(directory, target, settings, job)
    scorer = open_scorer(target, settings, job)
    try:
        Watcher(
            directory,
            job=job,
            scorer=scorer,
            rows=rows,
            stored=stored,
            tokenizer=Tokenizer(model),
            examiner=examiner,
            settings=settings,
            generate=generate,
            poll_seconds=poll_seconds,
            until=until,
        ).run()
    finally:
        scorer.close()
    return 0


def _prepare(directory: Path, target: Target, settings: Settings, job: Job) -> tuple[Any, Examiner | None]:
    """The plan's rows and items and the tokenizer's model on every rank, and on rank 0 what measures."""
    from probes.examiner import Examiner
    from probes.journal import Journal
    from probes.remarks import PROBE_ITEMS, item_fields, warning
    from probes.target import find_tokenizer, require_add_bos, tokenizer_warning
    from probes.tier import PLANS_FOLDER

    made: list[Examiner] = []

    def prepare() -> Any:
        tokenizer, journal, step = find_tokenizer(target, settings.tokenizer), Journal(directory), target.facts.step
        doubt = tokenizer_warning(target, tokenizer)
        if doubt is not None:
            _say(f"warning: {doubt}")
            journal.write("tokenizer_doubt", step=step, warning=doubt)
        made.append(
            Examiner(
                settings,
                tokenizer,
                max_length=target.max_length,
                add_bos=require_add_bos(target, None),
                cache=directory / PLANS_FOLDER,
            )
        )
        plan = made[0].plan
        journal.write("probe_plan", step=step, seconds=made[0].seconds, **plan.describe())
        if said := warning(plan):
            journal.write(PROBE_ITEMS, step=step, warning=said, **item_fields(plan))
            _say(f"warning: {said}")
        return made[0].plan.rows, made[0].plan.stored, tokenizer.model

    return job.once(prepare), made[0] if made else None


def _until(values: dict[str, Any]) -> str:
    from probes.watch import UNTIL

    until = str(values.get("until", UNTIL[0]))
    if until not in UNTIL:
        raise ConfigError(f"until={until} is unknown. Allowed: {', '.join(UNTIL)}.")
    return until


def _poll_seconds(values: dict[str, Any]) -> int:
    seconds = int(values.get("poll_seconds", _POLL_SECONDS))
    longest = _TIMEOUT_MINUTES * 60 // 2
    if seconds > longest:
        raise ConfigError(f"poll_seconds={seconds} is too long: other processes wait meanwhile. At most {longest}.")
    return seconds


def _say(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
