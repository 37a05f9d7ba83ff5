"""Preparing on a Slurm cluster: datatrove's array, a task a unit, and a job behind it that publishes the folder.

The units' states on shared storage say what is done, so the same command run again is always right: it reports,
publishes, or submits what is left. Imported only where Slurm is asked for.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor, launch_slurm_job
from loguru import logger

from pretrain.config.run import RunConfig
from pretrain.data.execute import LOGS, clear_errors, find_error
from pretrain.data.prepare import Making, finish, making
from pretrain.data.prepared import given_tokenizer
from pretrain.data.progress import Say, Watch
from pretrain.data.worker import TokeniseUnit
from pretrain.durable import replace_file
from pretrain.errors import ConfigError, DataError

_JOB_NAME = "fineline-prepare"
_JOBS_NAME = "slurm.json"
_GB_PER_UNIT = 2


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """How units are submitted.

    Attributes:
        partition: Slurm partition.
        time: time limit of one unit, as sbatch takes it.
        tasks_at_once: units at the same time; None is all.
        sbatch: further options of sbatch.
    """

    partition: str
    time: str
    tasks_at_once: int | None = None
    sbatch: dict[str, str] = field(default_factory=dict)


class UnitArray(SlurmPipelineExecutor):
    """datatrove's array, with our finishing job in the place of its merging of statistics.

    Attributes:
        finishing_script: shell command of the finishing job.
        finishing_id: its job id, once submitted.
    """

    finishing_script = ""
    finishing_id: str | None = None

    def launch_merge_stats(self) -> None:
        """Submits the job that publishes the folder, to run when the array has ended, however it ended."""
        log = str(Path(self.slurm_logs_folder) / "finish_%j.out")
        arguments = {
            **{key: value for key, value in self.get_sbatch_args().items() if key != "array"},
            "job-name": f"{self.job_name}-finish",
            "output": log,
            "error": log,
            "dependency": f"afterany:{self.job_id}",
        }
        script = self.get_launch_file_contents(arguments, self.finishing_script)
        self.finishing_id = launch_slurm_job(script, self.job_id_retriever)

    def get_incomplete_ranks(self, ranks: Sequence[int] | None = None, skip_completed: bool | None = None) -> list[int]:
        """Units that are not done, by their own state."""
        return list(self.unfinished)

    unfinished: Sequence[int] = ()


def unit_array(
    made: Making, *, options: SlurmOptions, finishing: Sequence[str], unfinished: Sequence[int]
) -> UnitArray:
    """The array of a folder's unfinished units, not submitted.

    Args:
        made: the folder.
        options: where and how it runs.
        finishing: command that publishes the folder.
        unfinished: numbers of the units.
    """
    root = Path(__file__).resolve().parents[2]
    binaries = Path(sys.executable).parent
    array = UnitArray(
        [TokeniseUnit(str(made.writing.resolve()), ends_with_parent=False)],
        tasks=len(made.plan.units),
        time=options.time,
        partition=options.partition,
        workers=options.tasks_at_once or -1,
        mem_per_cpu_gb=_GB_PER_UNIT,
        job_name=_JOB_NAME,
        qos="",  # the user's, by --sbatch qos=…
        env_command=(
            f"export PATH={shlex.quote(str(binaries))}:$PATH\n"
            f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}\nexport OMP_NUM_THREADS=1"
        ),
        sbatch_args=options.sbatch,
        logging_dir=str((made.writing / LOGS).resolve()),
        skip_completed=False,
    )
    array.finishing_script = shlex.join(finishing)
    array.unfinished = unfinished
    return array


def prepare_on_slurm(
    config: RunConfig, *, run_root: Path, options: SlurmOptions, finishing: Sequence[str], say: Say
) -> bool:
    """Submits what is left to do, or reports on what is under way.

    Args:
        config: the run.
        run_root: as of `ensure_prepared`.
        options: where and how it runs.
        finishing: command that publishes the folder.
        say: told what happens.

    Returns:
        Whether the folder is complete; if not, jobs are at work.

    Raises:
        ConfigError: there is no Slurm here, or it refused the job.
        DataError: a unit failed because of its text.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError("--slurm-partition needs Slurm, and there is no sbatch here. Use --workers on this machine.")
    with making(config, run_root=run_root, say=say, given=given_tokenizer(config)) as made:
        if not isinstance(made, Making):
            return True
        watch = Watch(made.writing, made.plan, say=say)
        if watch.is_done:
            finish(made, watch, say=say)
            return True
        jobs_path = made.writing / LOGS / _JOBS_NAME
        if running := _running(jobs_path):
            watch.tell(now=True)
            say(f"jobs {', '.join(running)} are at work or wait; run the same command again to see how far they are")
            return False
        if error := find_error(made.writing):
            say(f"the last array stopped with: {error}")
        clear_errors(made.writing)
        unfinished = [
            unit.number for unit, state in zip(made.plan.units, watch.states, strict=True) if not state.is_done
        ]
        array = unit_array(made, options=options, finishing=finishing, unfinished=unfinished)
        logger.disable("datatrove")  # what it says is said below
        try:
            array.run()
        except subprocess.CalledProcessError as failed:
            raise ConfigError(
                f"sbatch refused the job (exit code {failed.returncode}); see its message above."
            ) from None
        replace_file(jobs_path, json.dumps([str(array.job_id), str(array.finishing_id)]))
        say(
            f"submitted {len(unfinished)} units as array {array.job_id}, and job {array.finishing_id}, which publishes "
            f"{made.directory} when they are done; logs are in {made.writing / LOGS}. The same command run again says "
            "how far it is, and submits what was left undone."
        )
    return False


def finish_array(config: RunConfig, *, run_root: Path, say: Say) -> None:
    """Publishes a folder after its array has ended.

    Raises:
        DataError: a unit is not done; names why where it is known.
    """
    with making(config, run_root=run_root, say=say, given=given_tokenizer(config)) as made:
        if not isinstance(made, Making):
            return
        watch = Watch(made.writing, made.plan, say=say)
        if not watch.is_done:
            if error := find_error(made.writing):
                raise error
            left = sum(not state.is_done for state in watch.states)
            raise DataError(
                f"{left} of {len(watch.states)} units were not done when the array ended (time, memory or a node). "
                f"Logs are in {made.writing / LOGS}. Run the same command with Slurm options again to submit them."
            )
        finish(made, watch, say=say)


def _running(jobs_path: Path) -> list[str]:
    """Those of the jobs submitted before that Slurm still has."""
    try:
        jobs = json.loads(jobs_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    running = []
    for job in jobs:
        found = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%i"], capture_output=True, encoding="utf-8", check=False
        )
        if found.returncode == 0 and found.stdout.strip():
            running.append(job)
    return running
