"""A plan compiled from one run's configuration serves another run that has no data sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from probes.__main__ import main
from tests.support import runs
from tests.unit.probes.conftest import MULTIPLE_CHOICE, write_task


@pytest.mark.slow
def test_a_run_without_data_sets_scores_a_compiled_plan(tmp_path: Path) -> None:
    runs.write_text(tmp_path)
    items = [{"question": f"the {word}", "choices": ["runs home", "a red old house"], "gold": n % 2}
             for n, word in enumerate(runs.WORDS)]  # fmt: skip
    tasks = tmp_path / "tasks"
    write_task(tasks, "t_words", items, {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    suite = tmp_path / "words.yaml"
    suite.write_text(yaml.safe_dump({"tasks": [{"task": "t_words", "domain": "d"}]}))
    common = ["train.steps=6", f"probe.suite={suite}", f"probe.task_paths=[{tasks}]", "track=[jsonl]"]

    log = tmp_path / "log"
    assert runs.finish(runs.overrides(tmp_path, "first", *common), log=log) == 0, log.read_text()[-5000:]
    assert main(["compile", f"run={tmp_path / 'runs' / 'first'}", f"out={tmp_path / 'plan'}"]) == 0
    (tasks / "t_words.jsonl").unlink()
    assert runs.finish(runs.overrides(tmp_path, "without", *common), log=log) != 0
    assert "Task t_words of" in log.read_text() and "cannot be loaded" in log.read_text()
    planned = [*common, f"probe.plan={tmp_path / 'plan'}"]
    assert runs.finish(runs.overrides(tmp_path, "second", *planned), log=log) == 0, log.read_text()[-5000:]
    first, second = (
        [{key: row[key] for key in ("step", "task", "metric", "value", "stderr", "plan_hash")} for row in rows]
        for rows in (runs.probes(tmp_path / "runs" / name) for name in ("first", "second"))
    )
    assert first == second and len(first) > 4
    other = [*planned, "probe.limit=3"]
    assert runs.finish(runs.overrides(tmp_path, "third", *other), log=log) != 0
    assert "limit None, now 3" in log.read_text()
