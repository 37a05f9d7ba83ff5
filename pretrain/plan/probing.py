"""What scoring at saves costs, as a share of training.

A compiled plan (`probe.plan`) says exactly how many tokens a pass computes. Without one a table of counts of well-known
tasks gives an estimate; tasks that it lacks are named, and the cost is then a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.calendar import Calendar, milestone_steps, save_steps
from pretrain.config.run import RunConfig
from pretrain.units import parse_share
from probes.plan import Plan
from probes.suite import Limit, Suite, TaskSpec, load_suite, num_limited

_Counted = tuple[TaskSpec, int, int]  # a line, its items and tokens

_TOKENIZER = 1.1
"""LLaMA's tokenizer makes about so many tokens of one of GPT-NeoX's, with which the table was counted."""

_KNOWN: dict[str, tuple[int, int, int]] = {
    "hellaswag": (10_042, 1_736_000, 82),
    "piqa": (1_838, 109_000, 36),
    "arc_easy": (2_376, 107_000, 32),
    "arc_challenge": (1_172, 64_000, 37),
    "winogrande": (1_267, 57_000, 22),
    "boolq": (3_270, 457_000, 139),
    "lambada_openai": (5_153, 400_000, 78),
    "openbookqa": (500, 14_000, 16),
    "sciq": (1_000, 113_000, 107),
    "copa": (100, 2_000, 15),
    "rte": (277, 22_000, 78),
}
"""Task -> items, tokens of all without examples, tokens of one request. Counted on the requests that AI2's
OLMo-in-loop-evals ships (ARC's scaled from its validation split) with GPT-NeoX's tokenizer; what the requests of an
item begin with in common counts once, as it is packed here. An example in a prompt is about as long as a request, and
lm-eval draws other ones for every item."""

_MMLU = {0: (14_042, 1_750_000), 5: (14_042, 1_780_000)}
"""The same of MMLU by examples, which are a subject's own and so count once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """Cost of scoring.

    Attributes:
        suite: its name.
        source: `plan` (counted, exact), `published` (the table), or why nothing is scored during training.
        tokens_full, tokens_fast: of one pass over the suite, and over its fast tier; as far as they are known.
        estimated: tasks whose examples in the prompt are counted by their mean length.
        unknown: tasks whose tokens are not known: the cost is at least what is said.
        generates: tasks whose answers are written, too, whose cost is not counted.
        full_saves, fast_saves: saves at which each is scored.
        seconds_per_pass: of the full suite, at the speed of training.
        share: of training time, 0 to 1; with a budget at most that.
        budget: share of wall time that probe.budget allows, if it is set.
    """

    suite: str
    source: str
    tokens_full: int = 0
    tokens_fast: int = 0
    estimated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    generates: tuple[str, ...] = ()
    full_saves: int = 0
    fast_saves: int = 0
    seconds_per_pass: float = 0.0
    share: float = 0.0
    budget: float | None = None


def probe_plan(config: RunConfig, *, tokens_per_second: float) -> ProbePlan:
    """Plans the scoring of a run.

    A forward pass is a third of a step without recomputation and a quarter with recompute=full, per token.

    Args:
        config: the resolved configuration.
        tokens_per_second: of training, the whole job.

    Raises:
        ProbeError: no such suite, or a compiled plan that cannot be read.
    """
    probe = config.probe
    if probe.mode != "inline":
        return ProbePlan(suite=probe.suite, source=f"probe.mode={probe.mode}")
    suite = load_suite(probe.suite)
    known = _known(suite, probe.limit)
    full, fast = _count(config, known)
    counted = suite.tasks if probe.plan is not None else [line for line, *_ in known]
    from_table = [] if probe.plan is not None else counted
    saves, calendar = _saves(config), save_steps(config)
    several = probe.milestones is not None
    fast_saves = len(calendar.steps()) if several else 0
    forward = tokens_per_second * (4 if config.engine.recompute == "full" else 3)
    tokens = full * saves + fast * fast_saves
    share = tokens / forward / (config.total_tokens / tokens_per_second)
    budget = None if probe.budget is None else parse_share(probe.budget, key="probe.budget")
    return ProbePlan(
        suite=suite.name,
        source="published" if probe.plan is None else "plan",
        tokens_full=full,
        tokens_fast=fast,
        estimated=tuple(_name(line) for line in from_table if line.num_fewshot and line.task != "mmlu"),
        unknown=tuple(_name(line) for line in suite.tasks if line not in counted),
        generates=tuple(line.task for line in suite.tasks if line.generate),
        full_saves=saves,
        fast_saves=fast_saves,
        seconds_per_pass=full / forward,
        share=share if budget is None else min(share, budget),
        budget=budget,
    )


def _saves(config: RunConfig) -> int:
    """Saves that score the whole suite."""
    calendar: Calendar = save_steps(config)
    if config.probe.milestones is None:
        return len(calendar.steps())
    wanted = milestone_steps(config.probe.milestones, total_steps=config.total_steps, batch_sizes=config.batch_sizes)
    return sum(step in wanted for step in calendar.steps())


def _count(config: RunConfig, known: list[_Counted]) -> tuple[int, int]:
    """Tokens of a pass over the suite and over its fast tier, as far as they are known."""
    probe = config.probe
    full = sum(tokens for *_, tokens in known)
    fast = sum(round(tokens * min(1.0, line.fast / items)) for line, items, tokens in known)
    if probe.plan is not None:
        full = Plan.load(Path(probe.plan)).num_tokens
    if probe.fast_plan is not None:
        fast = Plan.load(Path(probe.fast_plan)).num_tokens
    return full, fast


def _known(suite: Suite, limit: Limit | None) -> list[_Counted]:
    """The tasks that the tables have, cut to their limits."""
    found = []
    for line in suite.tasks:
        shots = line.num_fewshot or 0
        if line.task == "mmlu" and shots in _MMLU:
            items, tokens = _MMLU[shots]
        elif line.task in _KNOWN:
            items, tokens, request = _KNOWN[line.task]
            tokens += items * shots * request
        else:
            continue
        scored = num_limited(items, line.limit, limit)
        found.append((line, scored, round(tokens * _TOKENIZER * scored / items)))
    return found


def _name(line: TaskSpec) -> str:
    return f"{line.task} ({line.num_fewshot}-shot)" if line.num_fewshot else line.task
