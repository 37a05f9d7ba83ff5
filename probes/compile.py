"""A plan and its tasks, as training and the command line want them: compiled from data, or compiled before.

One process calls it; the plan it leaves in a folder is what the others load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import ProbeError
from probes.harness import Harness, load_harness, restore_harness
from probes.plan import Plan, PlanSettings, compile_plan, hash_plan
from probes.request import ProbeTokenizer
from probes.suite import Limit, Suite


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be scored, and how.

    Attributes:
        suite: the suite.
        tokenizer: the models'.
        settings: context length and packing.
        task_paths: folders with lm-eval task YAML files.
        data_dir: folder of data sets.
        limit: items per task at most, beside the suite's own limits.
        allow_code_execution: programs that the model writes may be run.
    """

    suite: Suite
    tokenizer: ProbeTokenizer
    settings: PlanSettings
    task_paths: Sequence[str | Path] = ()
    data_dir: str | Path | None = None
    limit: Limit | None = None
    allow_code_execution: bool = False


def plan_for(
    wanted: Wanted, *, compiled: str | Path | None, key: str, plans: Path | None = None
) -> tuple[Plan, Harness]:
    """The plan and the tasks of what is wanted: compiled, or opened where a compiled one is given.

    Args:
        wanted: suite, tokenizer, settings.
        compiled: folder of a plan compiled before; None compiles.
        key: what messages call that folder.
        plans: folder of plans by hash, where the plan lies afterwards either way: the record of a run needs it,
            wherever the other goes. None writes nothing.

    Raises:
        ProbeError: a task that cannot be scored, a plan that is another than was asked for, or one that cannot be
            written.
    """
    if compiled is None:
        return compile_suite(wanted, plans=plans)
    plan, harness = open_plan(compiled, wanted, key=key)
    if plans is not None and load_if_sound(plans / plan.plan_hash) is None:
        plan.save(plans / plan.plan_hash)
    return plan, harness


def compile_suite(wanted: Wanted, *, plans: Path | None = None) -> tuple[Plan, Harness]:
    """Reads the data and builds the prompts; packs them, unless a sound plan of the same hash lies in `plans`.

    Args:
        wanted: suite, tokenizer, settings.
        plans: folder of plans by hash, where the plan lies afterwards; None writes nothing.

    Raises:
        ProbeError: a task that cannot be scored, or a plan that cannot be written.
    """
    harness = load_harness(
        wanted.suite,
        task_paths=wanted.task_paths,
        data_dir=wanted.data_dir,
        limit=wanted.limit,
        allow_code_execution=wanted.allow_code_execution,
    )
    settings = wanted.settings
    requests = harness.capture(wanted.tokenizer, add_bos=settings.add_bos, max_length=settings.max_length)
    folder = plans / hash_plan(requests, wanted.tokenizer, settings) if plans is not None else None
    plan = load_if_sound(folder) if folder is not None else None
    if plan is None:
        plan = compile_plan(requests, wanted.tokenizer, settings)
        if folder is not None:
            plan.save(folder)
    return plan, harness


def open_plan(folder: str | Path, wanted: Wanted, *, key: str) -> tuple[Plan, Harness]:
    """A plan compiled before, with its tasks; no data set is touched.

    Args:
        folder: the plan.
        wanted: what it must be a plan of; `data_dir` does not count.
        key: what messages call the folder.

    Raises:
        ProbeError: damaged, of something else (every difference is named), or of tasks that have changed since.
    """
    if not Path(folder).is_dir():
        raise ProbeError(f"{key}={folder}: there is no such folder. Name one written by `python -m probes compile`.")
    plan = Plan.load(Path(folder))
    found = plan.differences(
        suite=wanted.suite, limit=wanted.limit, tokenizer=wanted.tokenizer.fingerprint, settings=wanted.settings
    )
    if found:
        listed = "".join(f"\n- {difference}" for difference in found)
        raise ProbeError(
            f"{key}={folder} was compiled for something else:{listed}\nCompile the plan again with these values, or "
            f"change them back."
        )
    allowed = wanted.allow_code_execution
    return plan, restore_harness(plan.stored, task_paths=wanted.task_paths, allow_code_execution=allowed)


def load_if_sound(folder: Path) -> Plan | None:
    """A plan compiled before; None if there is none, or a damaged one, which is then compiled anew."""
    try:
        return Plan.load(folder) if folder.is_dir() else None
    except ProbeError:
        return None
