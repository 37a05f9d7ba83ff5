"""Compiles a suite into a plan, on a machine without GPUs; runs use it with `probe.plan=FOLDER`, without data sets.

  python -m probes compile suite=amber tokenizer=llama.model max_length=2048
  python -m probes compile run=runs/mine
  python -m probes compile experiment=amber_7b data_dir=/data/evals out=plans/amber

Arguments:
  suite=NAME          a suite of configs/probes, or the path of one
  tokenizer=FILE      the SentencePiece model that models are trained with
  max_length=N        tokens of context, train.sequence_length of a run
  add_bos=true        prompts begin with <s>; false unless told
  data_dir=FOLDER     data sets, see `python -m probes prefetch`
  task_paths=[A,B]    folders with further task files
  limit=N             items per task at most, or below 1 the share of them: limit=0.1
  tokens_per_row=N    token budget of a packed row
  out=FOLDER          where the plan is written; plans/HASH, in the run where there is one
  run=RUN             takes what is not given from a run's config.yaml
  KEY=VALUE           any other argument is of a training command line, and what is not given is taken from it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import ConfigError
from pretrain.locate import run_of
from probes.commands.arguments import parse_keys

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig
    from pretrain.data.tokenizer import Tokenizer
    from probes.compile import Wanted
    from probes.plan import Plan

HELP = "compile a suite into a plan that runs can use without data sets"

_KEYS = {
    "suite": "path",
    "tokenizer": "path",
    "max_length": "whole number",
    "add_bos": "flag",
    "data_dir": "path",
    "task_paths": "list of paths",
    "limit": "limit",
    "tokens_per_row": "whole number",
    "out": "path",
    "run": "path",
}
_PLANS = "plans"
_LISTED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="see above")


def run(options: argparse.Namespace) -> int:
    """Compiles, writes and describes the plan.

    Raises:
        FinelineError: arguments that are wrong or missing, or a task that cannot be scored.
    """
    from probes.plan import require_replaceable

    own = [word for word in options.arguments if word.partition("=")[0] in _KEYS]
    others = [word for word in options.arguments if word.partition("=")[0] not in _KEYS]
    keys = parse_keys(own, _KEYS)
    if "run" in keys:
        keys["run"] = str(run_of(Path(keys["run"])))
    if "out" in keys:
        require_replaceable(Path(keys["out"]))
    config = _configuration(keys, others)
    wanted = _wanted(keys, config)

    from probes.compile import compile_suite
    from probes.harness import restore_harness

    plan, _ = compile_suite(wanted)
    # Nothing is run here. What a plan cannot restore is refused.
    restore_harness(plan.stored, task_paths=wanted.task_paths, allow_code_execution=True)
    parent = Path(keys["run"]) / _PLANS if "run" in keys else Path(_PLANS)
    folder = Path(keys["out"]) if "out" in keys else parent / plan.plan_hash
    plan.save(folder)
    print(describe(plan))
    print(f"\nplan: {folder}\nhash: {plan.plan_hash}\nA run uses it with probe.plan={folder.resolve()}")
    return 0


def _configuration(keys: dict[str, Any], others: Sequence[str]) -> RunConfig | None:
    """The configuration that `run=` or a training command line names; None without either."""
    from pretrain.config.load import compose, load_yaml

    if "run" in keys and others:
        raise ConfigError(
            f"run={keys['run']} names a configuration; {' '.join(others)} would be another one. Keep one."
        )
    if "run" in keys:
        return load_yaml(Path(keys["run"]) / "config.yaml")
    return compose(others) if others else None


def _wanted(keys: dict[str, Any], config: RunConfig | None) -> Wanted:
    """Everything a plan depends on, from arguments first and the configuration second."""
    from pretrain.config.probe import ProbeConfig
    from probes.compile import Wanted
    from probes.plan import PlanSettings
    from probes.suite import load_suite

    probe = config.probe if config is not None else ProbeConfig()
    max_length = keys.get("max_length", config.train.sequence_length if config is not None else None)
    suite = keys.get("suite", probe.suite if config is not None else None)
    tokenizers = [keys["tokenizer"]] if "tokenizer" in keys else _tokenizer_places(keys, config)
    missing = [
        f"{key}= is missing. {what}, or name a run (run=) or an experiment (experiment=) that says it."
        for key, value, what in (
            ("suite", suite, "Name a suite"),
            ("max_length", max_length, "Give the tokens of context"),
            ("tokenizer", tokenizers, "Give the SentencePiece model"),
        )
        if not value
    ]
    if missing or suite is None or max_length is None:
        raise ConfigError(missing)
    tokenizer = _one_tokenizer(tokenizers)
    if config is not None:
        _warn_of_missing_pieces(tokenizer, config)
    return Wanted(
        suite=load_suite(suite),
        tokenizer=tokenizer,
        settings=PlanSettings(
            max_length=max_length,
            add_bos=keys.get("add_bos", config.tokenizer.add_bos if config is not None else False),
            tokens_per_row=keys.get("tokens_per_row", probe.tokens_per_row),
        ),
        task_paths=keys.get("task_paths", probe.task_paths),
        data_dir=keys.get("data_dir", probe.data_dir),
        limit=keys.get("limit", probe.limit),
        allow_code_execution=True,
    )


def _tokenizer_places(keys: dict[str, Any], config: RunConfig | None) -> list[str]:
    """Where the tokenizer of a configuration lies; one trained on the run's text is there once that is prepared."""
    if config is None:
        return []
    if config.tokenizer.path is not None:
        return [config.tokenizer.path]
    places = [Path(config.data.prepared_dir)] if config.data.prepared_dir is not None else []
    if "run" in keys:
        directory = Path(keys["run"])
        places += [*sorted(directory.glob("export/*")), *sorted(directory.parent.glob("prepared/*"))]
    return [str(place / "tokenizer.model") for place in places if (place / "tokenizer.model").is_file()]


def _one_tokenizer(places: Sequence[str]) -> Tokenizer:
    from pretrain.data.tokenizer import Tokenizer

    found = {tokenizer.fingerprint: tokenizer for tokenizer in map(Tokenizer.load, places)}
    if len(found) > 1:
        listed = ", ".join(f"{tokenizer.name} ({fingerprint[:8]})" for fingerprint, tokenizer in found.items())
        raise ConfigError(f"Several tokenizers may be the run's: {listed}. Name one with tokenizer=FILE.")
    return next(iter(found.values()))


def _warn_of_missing_pieces(tokenizer: Tokenizer, config: RunConfig) -> None:
    from pretrain.vocabulary import missing_pieces

    problem = missing_pieces(num_pieces=tokenizer.vocab_size, vocab_size=config.tokenizer.vocab_size)
    if problem is not None:
        remedy = "A run refuses a plan of another tokenizer. Name the model's own with tokenizer=FILE."
        print(f"warning: {tokenizer.name}: {problem} {remedy}", file=sys.stderr)


def describe(plan: Plan) -> str:
    """A table of the plan's tasks, what scoring it computes, and a sentence for everything that is not as it seems."""
    table = plan.table
    lines = [("task", "domain", "shots", "items", "requests")]
    for index, task in enumerate(plan.tasks):
        requests = int((table.task_R == index).sum())
        lines.append((task.name, task.domain, str(task.num_fewshot), str(task.num_items), str(requests)))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    rows = [
        "  ".join([cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
                  + [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)])
        for line in lines
    ]  # fmt: skip
    stats = plan.stats
    saved = stats["naive_tokens"] / max(1, stats["tokens"])
    rows += [
        "",
        f"{stats['requests']:,} requests in {stats['rows']:,} rows",
        f"{stats['tokens']:,} tokens computed, {stats['naive_tokens']:,} if each request were alone: {saved:.1f} times",
        f"{stats['padding']:.1%} of them are padding",
        *_remarks(plan),
    ]
    return "\n".join(rows)


def _remarks(plan: Plan) -> list[str]:
    from probes.remarks import remarks

    found = [
        f"{task.name}: {task.not_computed} would need generated text; gold answers are scored instead."
        for task in plan.tasks
        if task.not_computed
    ]
    found += remarks(plan)
    if plan.skipped:
        found.append(f"{len(plan.skipped):,} items or reference answers cannot be scored and are left out:")
        found += [f"- {sentence}" for sentence in plan.skipped[:_LISTED]]
        if len(plan.skipped) > _LISTED:
            found.append(f"- and {len(plan.skipped) - _LISTED:,} more")
    return found
