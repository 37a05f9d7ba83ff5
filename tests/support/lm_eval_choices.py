"""Makes `probes/dynamics/lm_eval_choices.csv`: how many choices the tasks of the installed lm-eval have.

    python -m tests.support.lm_eval_choices

Of each multiple-choice task whose definition writes its choices out, as a list or as a template of a list. A task
without choices, whose answer's log-probability is asked for (lambada), has 0. What depends on the data is left to the
facts in `probes.dynamics.guessing`, and names that those tell rightly are left out. Where all of lm-eval's names with
one beginning agree, the beginning stands for them.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from probes.dynamics.guessing import LM_EVAL_CHOICES, beginnings, chance_of_choices, written_facts

_FEWEST = 3
"""A beginning that lm-eval has no task or group of, and that has two parts, stands for so many names at least."""


def choices_of_tasks(folders: Iterable[Path]) -> tuple[dict[str, int | None], set[str]]:
    """Of each task below these folders that scores answers its number of choices, and the names of groups and tags.

    The number is None where the definition does not tell it. Tasks whose answers are written are left out.
    """
    from lm_eval.tasks._index import Kind, TaskIndex

    index = TaskIndex().build(list(folders))
    tasks = {name.lower(): entry.cfg or {} for name, entry in index.items() if entry.kind is Kind.TASK}
    scored = {
        n: _choices(cfg) for n, cfg in tasks.items() if cfg.get("output_type") in ("multiple_choice", "loglikelihood")
    }
    return scored, {name.lower() for name, entry in index.items() if entry.kind in (Kind.GROUP, Kind.TAG)}


def rows(choices: Mapping[str, int | None], groups: Collection[str] = ()) -> dict[str, int]:
    """The names and beginnings that tell what is known of all tasks, without those that are written facts."""
    below: dict[str, list[int | None]] = defaultdict(list)
    for name, count in choices.items():
        for start in beginnings(name):
            below[start].append(count)
    facts = written_facts()
    found: dict[str, int] = {}
    for name, count in sorted(choices.items(), key=lambda item: (len(item[0]), item[0])):
        known = next((start for start in reversed(beginnings(name)) if start in facts), None)
        if count is None or (known is not None and facts[known] == chance_of_choices(count)):
            continue
        for start in beginnings(name):
            stands = start in choices or start in groups or ("_" in start and len(below[start]) >= _FEWEST)
            longer_than_fact = known is None or len(start) > len(known)
            if start == name or (stands and longer_than_fact and set(below[start]) == {count}):
                found.setdefault(start, count)
                break
    return found


def text_of(found: Mapping[str, int]) -> str:
    """The file's content."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "choices"])
    writer.writerows(sorted(found.items()))
    return file.getvalue()


def lm_eval_folder() -> Path:
    """Where lm-eval has its tasks."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def _choices(definition: Mapping[str, Any]) -> int | None:
    kind, choices = definition.get("output_type"), definition.get("doc_to_choice")
    if kind == "loglikelihood":
        return 0
    if isinstance(choices, list):
        return len({str(choice).casefold() for choice in choices})
    if isinstance(choices, str) and "{{" in choices:
        return _length_of_list(choices)
    return None


def _length_of_list(template: str) -> int | None:
    body = jinja2.Environment().parse(template).body
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        return None
    (only,) = body[0].nodes
    return len(only.items) if isinstance(only, nodes.List) else None


if __name__ == "__main__":
    made = rows(*choices_of_tasks([lm_eval_folder()]))
    LM_EVAL_CHOICES.write_text(text_of(made), encoding="utf-8")
    print(f"{LM_EVAL_CHOICES}: {len(made)} rows")
