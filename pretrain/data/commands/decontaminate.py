"""Finds what a corpus shares with evaluation items, and can write the corpus without it.

python -m pretrain.data decontaminate experiment=demo --suite amber --data-dir /data/evals
python -m pretrain.data decontaminate 'corpus/*.jsonl.zst' --tasks boolq,piqa --json report.json
python -m pretrain.data decontaminate 'corpus/*.jsonl.zst' --items private.jsonl --drop --out clean/

An item overlaps with a document that has --ngram words in a row of one of its texts, or of two in a row (question and
answer). Texts of 10 words and more that are shorter count as a whole. Phrases of more than 10 items and rows of one
word do not count. Words are compared in lower case, without accents and punctuation. --drop leaves out every document
that overlaps.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.arguments import written_path
from pretrain.data.commands.inputs import INPUTS_HELP, config_of, files_of
from pretrain.durable import replace_file
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig
    from pretrain.data.ngrams import Item

HELP = "find what the text shares with evaluation items, and drop it"
_LEAST_NGRAM = 5
_EXCERPT_CHARACTERS = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("inputs", nargs="+", metavar="KEY=VALUE|FILE", help=INPUTS_HELP)
    parser.add_argument("--suite", type=written_path, help="a suite of configs/probes, or the path of one")
    parser.add_argument("--tasks", help="lm-eval tasks, separated by commas")
    parser.add_argument(
        "--items", action="append", type=written_path, default=[], metavar="FILE", help="JSONL, an item a line"
    )
    parser.add_argument(
        "--data-dir", type=written_path, help="data sets of tasks (default: probe.data_dir), as for `python -m probes`"
    )
    parser.add_argument("--ngram", type=int, default=13, help="words in a row that count (default: 13, as GPT-3)")
    parser.add_argument("--json", type=Path, metavar="REPORT", help="write the whole report, with every overlap")
    parser.add_argument("--examples", type=int, default=3, help="overlaps shown of each task (default: 3)")
    parser.add_argument("--drop", action="store_true", help="write the text without the documents that overlap")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where --drop writes")
    parser.add_argument("--processes", type=int, default=1, help="processes that files are spread over (default: 1)")
    parser.add_argument("--text-key", help="field or column of the files that holds the text (default: text)")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    _check(options)
    from pretrain.data.decontaminate import Settings, read_items, report_of, scan
    from pretrain.data.ngrams import NgramIndex

    config = config_of(options.inputs, text_key=options.text_key)
    sources = files_of(config)
    items = read_items(*options.items) if options.items else []
    if options.suite or options.tasks:
        items += _task_items(options, config)
    text_keys = {name: config.data.text_key_of(name) for name in sources}
    settings = Settings(text_keys, config.data.max_line_bytes, options.out if options.drop else None)
    index = NgramIndex(items, num_words=options.ngram)
    report = report_of(scan(sources, index, settings=settings, num_processes=options.processes), index)
    print("\n".join(_lines(report, num_examples=options.examples)))
    if options.json is not None:
        _write_json(options.json, report)
    return 0


def _check(options: argparse.Namespace) -> None:
    problems = []
    if not (options.suite or options.tasks or options.items):
        problems.append("Nothing to compare with. Give --suite, --tasks or --items.")
    if options.suite and options.tasks:
        problems.append("Give --suite or --tasks, not both.")
    if options.drop != (options.out is not None):
        problems.append("--drop needs --out, the folder that takes the text; --out is for --drop alone.")
    for name, least in (("ngram", _LEAST_NGRAM), ("processes", 1), ("examples", 0)):
        if getattr(options, name) < least:
            problems.append(f"--{name}={getattr(options, name)}: it is at least {least}.")
    if problems:
        raise ConfigError(problems)


def _task_items(options: argparse.Namespace, config: RunConfig) -> list[Item]:
    """Items of lm-eval's tasks that are scored, as their data sets have them: prompts' templates are no overlap."""
    # The one place at which data knows of probes: a command composes the two rooms, neither needs the other.
    from pretrain.data.decontaminate import item_of
    from probes.finder import TaskFinder
    from probes.suite import TaskSpec, load_suite
    from probes.task_data import data_from_folder

    if options.suite:
        specs: Sequence[TaskSpec] = load_suite(options.suite).tasks
    else:
        names = [name.strip() for name in options.tasks.split(",") if name.strip()]
        specs = [TaskSpec(task=name, domain="decontaminate") for name in names]
    data_dir = options.data_dir or config.probe.data_dir
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # what lm-eval would fetch is asked for first
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    finder = TaskFinder(config.probe.task_paths, data_from_folder(data_dir))
    found: list[Item] = []
    for spec in {spec.task: spec for spec in specs}.values():  # its items are the same at every number of examples
        for task in finder.load(spec).tasks:
            records: Any = task.test_docs() if task.has_test_docs() else task.validation_docs()
            name = task.config.task
            found += [item_of(dict(record), task=spec.task, name=f"{name}/{i}") for i, record in enumerate(records)]
    return found


def _lines(report: dict[str, Any], *, num_examples: int) -> Iterator[str]:
    yield f"{'task':<24} {'items':>9} {'overlapping':>12} {'':>7} {'too short':>10} {'longest':>8}"
    for name, task in report["tasks"].items():
        share = f"{100 * task['overlapping'] / task['items']:.2f}%"
        yield (
            f"{name:<24} {task['items']:>9,} {task['overlapping']:>12,} {share:>7} {task['too_short']:>10,} "
            f"{task['longest_words']:>8}"
        )
    yield f"\n{'source':<24} {'documents':>9} {'overlapping':>12} {'':>7} {'unread':>10} {'of bytes':>9} {'dropped':>8}"
    for name, source in report["sources"].items():
        share = f"{100 * source['overlapping'] / max(1, source['documents']):.2f}%"
        unread = f"{source['rejected_bytes'] / max(1, source['bytes_read']):.2%}"
        yield (
            f"{name:<24} {source['documents']:>9,} {source['overlapping']:>12,} {share:>7} {source['rejected']:>10,} "
            f"{unread:>9} {source['dropped']:>8,}"
        )
    for name in report["tasks"] if num_examples else ():
        mine = sorted((o for o in report["overlaps"] if o["task"] == name), key=lambda o: -o["num_words"])
        shown: dict[str, Any] = {}
        for overlap in mine:
            shown.setdefault(overlap["item"], overlap)
        for overlap in list(shown.values())[:num_examples]:
            yield (
                f"\n{overlap['item']} and {overlap['file']}, line {overlap['line']}: {overlap['num_words']} words\n"
                f"  {overlap['excerpt'][:_EXCERPT_CHARACTERS]}"
            )


def _write_json(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
