"""Sweeps: `python -m pretrain -m key=a,b` runs one job for each combination, one after another.

Each job is a fresh process, or torchrun with `cluster.processes_per_node` of them, because an engine cannot be built
twice in one process. All jobs are composed and checked before the first starts.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.config.checks import find_problems
from pretrain.config.load import compose
from pretrain.config.overrides import parse
from pretrain.errors import ConfigError

_EXIT_STOPPED = 75  # pretrain.train.EXIT_STOPPED, which cannot be imported without torch


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: its run.name.
        overrides: complete command line, the name included.
        num_processes: processes it is started with.
    """

    name: str
    overrides: tuple[str, ...]
    num_processes: int


def expand(overrides: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """All combinations of the swept overrides, the last varying fastest.

    Returns:
        For each job its overrides and, of these, the ones that the sweep varies.

    Raises:
        ConfigError: overrides that do not parse.
    """
    choices: list[list[str]] = []
    swept: list[bool] = []
    problems = []
    for text in overrides:
        try:
            override = parse(text)
        except ValueError as error:
            problems.append(str(error))
            continue
        swept.append(override.is_sweep_override())
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([text])
    if problems:
        raise ConfigError(problems)
    return [
        (list(job), [text for text, is_swept in zip(job, swept, strict=True) if is_swept])
        for job in itertools.product(*choices)
    ]


def plan(overrides: Sequence[str], *, config_dir: str | None = None) -> list[Job]:
    """Composes, checks and names every job of a sweep.

    Raises:
        ConfigError: what is wrong with any job, told once per distinct problem.
    """
    jobs: list[Job] = []
    problems: list[str] = []
    for job_overrides, varied in expand(overrides):
        try:
            config = compose(job_overrides, config_dir=config_dir)
        except ConfigError as error:
            problems += error.problems
            continue
        size = config.cluster.processes_per_node
        if config.cluster.nodes > 1:
            problems.append(
                f"cluster.nodes={config.cluster.nodes}: a sweep runs its jobs on this machine only. Set "
                f"cluster.nodes=1, or start one launch/slurm.sbatch per job."
            )
        names_itself = any(text.startswith("run.name=") for text in varied)
        name = config.run.name if names_itself or not varied else f"{config.run.name}-{_suffix(varied)}"
        problems += find_problems(config, size)
        jobs.append(Job(name=name, overrides=(*job_overrides, f"run.name='{name}'"), num_processes=size))
    names = [job.name for job in jobs]
    problems += [
        f"run.name={name} would be the name of {names.count(name)} jobs. Sweep different values, or run.name too."
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return jobs


def command(job: Job, *, config_dir: str | None = None) -> list[str]:
    """The command line that runs a job."""
    launcher = [sys.executable, "-m"]
    if job.num_processes > 1:
        launcher += ["pretrain.torchrun", "--standalone", f"--nproc-per-node={job.num_processes}", "-m"]
    folder = ["--config-dir", config_dir] if config_dir is not None else []
    return [*launcher, "pretrain", *folder, *job.overrides]


def run(
    overrides: Sequence[str], *, config_dir: str | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Runs a sweep; a job that fails does not stop the others.

    Args:
        overrides: as on the command line, swept values among them.
        config_dir: as for `compose`.
        environment: variables of this process; for tests.

    Returns:
        Exit code: 0 when every job succeeded, 75 when one was told to stop, else 1.

    Raises:
        ConfigError: started by torchrun, or a job cannot run.
    """
    variables = os.environ if environment is None else environment
    world_size = variables.get("WORLD_SIZE", "").strip()
    if world_size not in ("", "1"):
        raise ConfigError(
            f"-m was started by a launcher (WORLD_SIZE={world_size} in the environment): every process would run the "
            f"whole sweep. Start it as one process without that variable, `python -m pretrain -m …`; it starts each "
            f"job with cluster.processes_per_node processes."
        )
    jobs = plan(overrides, config_dir=config_dir)
    failed = []
    for index, job in enumerate(jobs, start=1):
        print(f"[sweep] job {index} of {len(jobs)}: {job.name}", flush=True)
        code = subprocess.run(command(job, config_dir=config_dir), check=False).returncode
        if code == _EXIT_STOPPED:
            print(f"[sweep] {job.name} was told to stop; start the sweep again to go on", file=sys.stderr, flush=True)
            return code
        if code:
            failed.append(f"{job.name} (exit code {code})")
    if failed:
        print(f"[sweep] {len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}", file=sys.stderr, flush=True)
        return 1
    print(f"[sweep] all {len(jobs)} jobs done", flush=True)
    return 0


def _suffix(varied: Sequence[str]) -> str:
    """What tells this job from the others, with only characters that a folder name takes well."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.=+,@-]+", "_", text.lstrip("+~")) for text in varied)
