"""`python -m pretrain.checkpoint release`: make, complete, check and push the releases of a run directory.

Works beside a run that is going on, and after one; doing it again does what is missing. What fails for one save is
said and does not keep the others back.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from pretrain.arguments import count_of
from pretrain.checkpoint.calendar import milestone_steps
from pretrain.checkpoint.card import Score, read_scores
from pretrain.checkpoint.hub import Hub
from pretrain.checkpoint.huggingface import DTYPES
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.reader import CheckpointInfo, CheckpointReader, list_checkpoints
from pretrain.checkpoint.release import Releases
from pretrain.errors import CheckpointError, ConfigError, FinelineError
from pretrain.locate import run_of
from pretrain.naming import template_problems
from pretrain.units import Duration

HELP = "make, complete, check and push the releases of a run: what is missing of them, again and again"
HEAD = ("step", "tokens", "release", "files", "scores", "hub")
_FAILED = "FAILED"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    command.add_argument("path", type=Path, metavar="run", help="run directory, of a finished or a running run")
    text = "as 1000,2000; by default the regular saves, the last one, and what is released already"
    which = command.add_mutually_exclusive_group()
    which.add_argument("--steps", type=_steps, default=None, help=text)
    text = "saves at multiples of a duration, as '10000 steps' or '100B tokens', and the first and last"
    which.add_argument("--every", default=None, metavar="DURATION", help=text)
    command.add_argument("--out", type=Path, default=None, help="folder of the releases; by default the run's `export`")
    text = "by default as the run has it (checkpoint.export_dtype)"
    command.add_argument("--dtype", choices=tuple(DTYPES), default=None, help=text)
    text = "publish although AutoTokenizer gives other ids than training (checkpoint.allow_tokenizer_mismatch)"
    command.add_argument("--allow-tokenizer-mismatch", action="store_true", default=None, help=text)
    text = "folder and revision, as 'ckpt_{index:03d}' (checkpoint.export_name)"
    command.add_argument("--name", default=None, metavar="TEMPLATE", help=text)
    text = "push to 'me/Amber-{billions}B', one each, or 'me/amber', a revision each (checkpoint.hub_repository)"
    command.add_argument("--repository", default=None, metavar="TEMPLATE", help=text)
    command.add_argument("--public", action="store_true", help="repositories that have to be made are public")
    command.add_argument("--dry-run", action="store_true", help="say what would be made, and change nothing")


def release(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Runs the command; what is wrong is written to stderr as it is found.

    Returns:
        The rows of its table, under `HEAD`; `failed` tells whether one of them is of something that failed.

    Raises:
        FinelineError: the folder is no run directory, nothing can be released of it, or an argument is not usable.
    """
    releases = _configured(options)
    scores, hub = read_scores(releases.directory), Hub()
    rows: list[tuple[str, ...]] = []
    chosen = _chosen(releases, options.steps, options.every)
    _refuse_clashes(releases, {info.step for info in chosen})
    for info in chosen:
        if info.manifest is None:
            print(info.problem, file=sys.stderr)
            rows.append((f"{info.step:_}", "", _FAILED, "", "", ""))
            continue
        of_step = scores.get(info.step, [])
        rows.append(
            _planned(releases, info.manifest, of_step) if options.dry_run else _row(releases, info, of_step, hub)
        )
    return rows


def failed(rows: list[tuple[str, ...]]) -> bool:
    """Whether anything failed."""
    return any(_FAILED in row for row in rows)


def _configured(options: argparse.Namespace) -> Releases:
    problems = [
        problem
        for key, template in (("--name", options.name), ("--repository", options.repository))
        if template is not None
        for problem in template_problems(key, template)
    ]
    if problems:
        raise ConfigError(problems)
    releases = Releases.of_run(run_of(options.path))
    given = {
        "export_dtype": options.dtype,
        "export_name": options.name,
        "hub_repository": options.repository,
        "allow_tokenizer_mismatch": options.allow_tokenizer_mismatch,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    checkpoint = dataclasses.replace(releases.config.checkpoint, **wanted)
    config = dataclasses.replace(releases.config, checkpoint=checkpoint)
    out = releases.out if options.out is None else Path(os.path.abspath(options.out))
    return dataclasses.replace(releases, config=config, out=out, public=options.public)


def _chosen(releases: Releases, steps: list[int] | None, every: str | None) -> list[CheckpointInfo]:
    found = {info.step: info for info in list_checkpoints(releases.checkpoints)}
    if not found:
        raise CheckpointError(f"{releases.checkpoints} holds no checkpoints. Name the directory of a run that saved.")
    if every is not None:
        steps = sorted(found.keys() & _multiples(releases, every))
        if not steps:
            raise CheckpointError(
                f"{releases.checkpoints} has no save at a multiple of {every}: steps {_shown(list(found))} are there."
            )
    elif steps is None:
        steps = [step for step, info in found.items() if _is_due(releases, info)]
        if not steps:
            raise CheckpointError(
                f"{releases.checkpoints} has no regular save, nor the run's last: steps {_shown(list(found))} are "
                f"there. Name those to release with --steps."
            )
    absent = f"{releases.checkpoints} has no save of step {{}}; there are {_shown(list(found))}."
    return [found.get(step) or CheckpointInfo(releases.checkpoints, step, None, absent.format(step)) for step in steps]


def _refuse_clashes(releases: Releases, steps: set[int]) -> None:
    """Two saves of one name would take each other's place: in the folder silently, on the hub again and again."""
    checkpoint = releases.config.checkpoint
    saves = [info.manifest for info in list_checkpoints(releases.checkpoints) if info.manifest is not None]
    for key, template, names_of in (
        ("checkpoint.export_name, --name", checkpoint.export_name, _folder_names),
        ("checkpoint.hub_repository, --repository", checkpoint.hub_repository, _revisions),
    ):
        taken: dict[str, int] = {}
        for manifest in saves:
            for name in names_of(releases, manifest):
                other = taken.setdefault(name, manifest.step)
                if other != manifest.step and steps & {other, manifest.step}:
                    raise ConfigError(
                        f"{template!r} ({key}) gives steps {other} and {manifest.step} the same name, {name}. Use "
                        f"{{step}} in it, or release other saves (--steps, --every)."
                    )


def _folder_names(releases: Releases, manifest: Manifest) -> list[str]:
    return [releases.folder(manifest).name]


def _revisions(releases: Releases, manifest: Manifest) -> list[str]:
    return [_place(*place) for place in releases.places(manifest)]


def _multiples(releases: Releases, every: str) -> frozenset[int]:
    if Duration.parse(every, key="--every").count < 1:
        raise ConfigError([f"--every={every!r} must be longer than nothing, for example '10000 steps'."])
    config = releases.config
    return milestone_steps(every, total_steps=config.total_steps, batch_sizes=config.batch_sizes)


def _is_due(releases: Releases, info: CheckpointInfo) -> bool:
    if info.step == releases.config.total_steps or releases.calendar.index(info.step) is not None:
        return True
    return info.manifest is not None and releases.folder(info.manifest).is_dir()


def _planned(releases: Releases, manifest: Manifest, scores: list[Score]) -> tuple[str, ...]:
    there = releases.folder(manifest).is_dir()
    places = ", ".join(f"would look at {_place(*place)}" for place in releases.places(manifest))
    return _cells(releases, manifest, "there" if there else "would be made", scores, places)


def _row(releases: Releases, info: CheckpointInfo, scores: list[Score], hub: Hub) -> tuple[str, ...]:
    """Does everything for one save, as far as it goes."""
    manifest = info.manifest
    assert manifest is not None, "the caller has looked"
    state, pushed = _FAILED, ""
    try:
        made = releases.make(CheckpointReader(info.path), replace=False)
        if made is None:
            releases.check(manifest)
        releases.complete(manifest, scores)
        state = "there, every byte as written" if made is None else "made"
        pushed = _FAILED
        done = [
            f"{p.num_files or 'no'} files to {_place(p.repository, p.revision)}" for p in releases.push(manifest, hub)
        ]
        pushed = ", ".join(done)
    except FinelineError as error:
        print(f"Step {info.step:_}: {error}", file=sys.stderr)
    return _cells(releases, manifest, state, scores, pushed)


def _cells(releases: Releases, manifest: Manifest, state: str, scores: list[Score], pushed: str) -> tuple[str, ...]:
    tokens = f"{manifest.meta.run_state.get('tokens', 0):_}"
    return f"{manifest.step:_}", tokens, releases.folder(manifest).name, state, str(len(scores)), pushed


def _place(repository: str, revision: str) -> str:
    return f"{repository}@{revision}"


def _shown(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 8 else f"{steps[0]}, {steps[1]}, … {steps[-1]} ({len(steps)})"


def _steps(text: str) -> list[int]:
    return sorted(set(map(count_of("steps"), text.split(","))))
