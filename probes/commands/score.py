"""Scores one model on disk: a checkpoint, the newest of a run, or a local Hugging Face LLaMA.

  python -m probes score runs/demo suite=demo
  python -m probes score runs/demo/checkpoints/step_00001000 limit=50 out=scores
  python -m probes score runs/demo suite=openllama num_fewshot=5 limit=0.1
  python -m probes score /models/open_llama_3b suite=openllama precision=bf16 add_bos=true
  python -m pretrain.torchrun --nproc-per-node 8 -m probes score runs/big parallel.tensor=4 parallel.sequence=true

Of a run everything that is not given is as in its configuration, the layout excepted. Nothing is written into the
run unless record=true. A metric that cannot be computed is named with the reason; that is no error: the exit code is 0.
limit= is a number of items, or below 1 a share of each task's. num_fewshot= holds for every task, as lm-eval's
--num_fewshot does; tasks that fix 0 examples keep none, and the output names them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.durable import replace_file
from pretrain.errors import ConfigError, ProbeError
from pretrain.places import names_besides, what_is
from pretrain.units import parse_count
from probes.commands.arguments import parse_keys

if TYPE_CHECKING:
    from pretrain.engine.job import Job
    from probes.beside import Settings
    from probes.examiner import Examined, Examiner
    from probes.generate import Generated
    from probes.store import ProbeStore
    from probes.target import Target

HELP = "score a checkpoint, a run's newest one, or a local Hugging Face LLaMA"

_LISTED = 5
_OWN_KEYS = {
    "step": "text",
    "num_fewshot": "count",
    "add_bos": "flag",
    "max_length": "whole number",
    "out": "path",
    "record": "flag",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("path", type=Path, metavar="PATH", help="checkpoint, run directory or Hugging Face folder")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="suite=, limit=, parallel.tensor=, out=, …")


def run(options: argparse.Namespace) -> int:
    """Scores and prints a table. Every process of the job runs it.

    Raises:
        FinelineError: what the user can mend.
    """
    from pretrain.engine.job import Job
    from probes.beside import KEYS, Settings

    values = parse_keys(options.settings, {**KEYS, **_OWN_KEYS})
    settings, step = Settings.from_keys(values), _step(values.get("step"))
    if "out" in values:
        _check_out(Path(values["out"]))
    job = Job(timeout_minutes=60)
    try:
        return _score(options.path, step, settings, values, job)
    finally:
        job.close()


def _score(path: Path, step: int | None, settings: Settings, values: dict[str, Any], job: Job) -> int:
    from pretrain.data.tokenizer import Tokenizer
    from probes.beside import load_weights, open_scorer, score_in_slices
    from probes.generate import generate_texts
    from probes.partial import PartialAnswers
    from probes.target import find_target

    target = job.once(lambda: find_target(path, step=step, say=_say))
    if values.get("record") and target.run is None:
        raise ConfigError(f"record=true: {path} is no checkpoint of a run. Use out=FOLDER.")
    if target.config is not None:
        settings = settings.with_run(target.config)
    (rows, stored, model), examiner = _prepare(target, settings, values, job)
    scorer = open_scorer(target, settings, job)
    try:
        problem = load_weights(scorer, target, job)
        if problem is not None:
            raise ProbeError(f"{target.path} cannot be scored: {problem}")
        partial = PartialAnswers(len(rows.rows), rows.num_pairs, folder=None, stamp={})
        scored, seconds = score_in_slices(scorer, rows, partial, job, slice_rows=settings.slice_rows)
        generated = None
        if any(task.prompts for task in stored.tasks):
            generated = generate_texts(stored, Tokenizer(model), scorer)
        job.once(lambda: _report(target, examiner, values, scored, seconds, generated))
    finally:
        scorer.close()
    return 0


def _prepare(target: Target, settings: Settings, values: dict[str, Any], job: Job) -> tuple[Any, Any]:
    """The plan's rows and items and the tokenizer's model on every rank, and on rank 0 what measures."""
    from probes.examiner import Examiner
    from probes.target import find_tokenizer, require_add_bos, tokenizer_warning

    made: list[Examiner] = []

    def prepare() -> Any:
        tokenizer = find_tokenizer(target, settings.tokenizer)
        doubt = tokenizer_warning(target, tokenizer)
        if doubt is not None:
            _say(f"warning: {doubt}")
        made.append(
            Examiner(
                settings,
                tokenizer,
                max_length=min(target.max_length, values.get("max_length", target.max_length)),
                add_bos=require_add_bos(target, values.get("add_bos")),
                cache=None,
            )
        )
        return made[0].plan.rows, made[0].plan.stored, tokenizer.model

    return job.once(prepare), made[0] if made else None


def _report(
    target: Target,
    examiner: Examiner,
    values: dict[str, Any],
    scored: Any,
    seconds: float,
    generated: Generated | None,
) -> None:
    """Rank 0's end of the work."""
    from probes.examiner import results_table
    from probes.journal import Journal
    from probes.record import METRIC_MISSING
    from probes.remarks import remarks
    from probes.store import ProbeStore

    plan, texts = examiner.plan, generated.texts if generated is not None else None
    examined = examiner.examine(scored, target.facts, seconds=seconds, texts=texts)
    print(results_table(examined.measurements))
    for one in examined.missing:
        print(one.sentence())
    if "num_fewshot" in values:
        _say_kept(examiner, values["num_fewshot"])
    print(f"\n{target.path}: suite {plan.suite}, plan {plan.plan_hash}, {seconds:.1f} s of scoring")
    if generated is not None:
        print(f"{generated.num_tokens} tokens generated in {generated.seconds:.1f} s")
    for line in remarks(plan) or ["No prompt is cut, no answer is hidden, and no item is left out."]:
        print(line)
    for sentence in plan.skipped[:_LISTED]:
        print(f"left out: {sentence}")
    if len(plan.skipped) > _LISTED:
        print(
            f"left out: {len(plan.skipped) - _LISTED} more; out=FOLDER lists them in plans/{plan.plan_hash}/plan.json"
        )
    if values.get("record"):
        assert target.run is not None, "checked before"
        _record(ProbeStore(target.run), target, examiner, examined)
        journal = Journal(target.run)
        for one in examined.missing:
            journal.write(METRIC_MISSING, **one.to_json())
    if "out" in values:
        _write_out(Path(values["out"]), target, examiner, examined)


def _record(store: ProbeStore, target: Target, examiner: Examiner, examined: Examined) -> None:
    store.write_items(examiner.plan, examined.answers, step=target.facts.step)
    store.append(examined.measurements, examined.missing)


def _say_kept(examiner: Examiner, num_fewshot: int) -> None:
    """Names the tasks that num_fewshot= does not hold for."""
    kept = [task.name for task in examiner.plan.tasks if task.num_fewshot != num_fewshot]
    if kept:
        print(
            f"num_fewshot={num_fewshot} does not hold for tasks that fix 0 examples or have no prompt, as in lm-eval: "
            f"{', '.join(kept)}."
        )


def _write_out(folder: Path, target: Target, examiner: Examiner, examined: Examined) -> None:
    """A folder like a run's: rows, metrics that are missing, answers to every request, and the plan."""
    from probes.remarks import item_fields
    from probes.store import ProbeStore

    plan = examiner.plan
    missing = [one.to_json() for one in examined.missing]
    described = {"path": str(target.path.resolve()), **plan.describe(), **item_fields(plan), "missing": missing}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "scored.json", json.dumps(described, indent=1) + "\n")
    except OSError as error:
        raise ProbeError(f"out={folder} cannot be written: {error}. Name another folder.") from error
    _record(ProbeStore(folder), target, examiner, examined)
    plan.save(folder / "plans" / plan.plan_hash)
    print(f"written: {folder}")


def _check_out(folder: Path) -> None:
    """Scores go into a new folder or an earlier folder of scores, never among files of others."""
    if not folder.exists() or (folder / "scored.json").is_file():
        return
    if not folder.is_dir() or names_besides(folder, ()):
        what = what_is(folder)
        raise ConfigError(
            f"out={folder} is not a folder of scores: it {what}. Name one that does not exist or is empty."
        )


def _step(text: str | None) -> int | None:
    return None if text is None else parse_count(text, unit="steps", key="step")


def _say(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
