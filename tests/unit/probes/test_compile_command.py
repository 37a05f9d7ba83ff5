"""`python -m probes compile`: what it writes is what a run loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.config.load import compose, to_yaml
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer
from probes.__main__ import main
from probes.commands import compile as command
from probes.plan import Plan, PlanSettings
from tests.unit.probes.conftest import MULTIPLE_CHOICE, write_task

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    tasks = [{"task": "t_choice", "domain": "choice", "num_fewshot": 2}, {"task": "t_word", "domain": "language"}]
    path.write_text(yaml.safe_dump({"tasks": tasks}))
    return path


def test_a_plan_is_compiled_and_described(
    suite_file: Path, task_folder: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: Capture
) -> None:
    words = [f"suite={suite_file}", f"tokenizer={tokenizer.name}", f"task_paths=[{task_folder}]", "max_length=256"]
    assert main(["compile", *words, "add_bos=true", "limit=7", f"out={tmp_path / 'plan'}"]) == 0
    plan = Plan.load(tmp_path / "plan")
    assert plan.settings == PlanSettings(max_length=256, add_bos=True)
    assert (plan.stored.limit, plan.tokenizer, plan.suite) == (7, tokenizer.fingerprint, "small")
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["t_choice", "choice", "2", "7", "28"] in lines and ["t_word", "language", "0", "7", "7"] in lines
    assert f"hash: {plan.plan_hash}" in out and f"plan: {tmp_path / 'plan'}" in out
    stats = plan.stats
    assert f"{stats['tokens']:,} tokens computed, {stats['naive_tokens']:,} if each request were alone" in out
    assert "padding" in out and "are cut" not in out and "left out" not in out


def test_everything_that_is_cut_or_left_out_is_said(
    tokenizer: Tokenizer, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"question": "the cat " * 60, "choices": ["dog", "house"], "gold": 0}] * 2
    items += [{"question": "the cat", "choices": ["dog", "house " * 80], "gold": 0}] * 12
    items += [{"question": "the cat", "choices": ["dog", "house"], "gold": "rain"}]
    write_task(tmp_path / "tasks", "t_cut", items[:2], {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    write_task(tmp_path / "tasks", "t_long", items[1:14], {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    generated = {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[0]}}"}
    write_task(tmp_path / "tasks", "t_made", items[:1], {**generated, "metric_list": [{"metric": "exact_match"}]})
    suite = tmp_path / "odd.yaml"
    suite.write_text(yaml.safe_dump({"tasks": [{"task": t, "domain": "d"} for t in ("t_cut", "t_long", "t_made")]}))
    monkeypatch.chdir(tmp_path)
    words = [f"suite={suite}", f"tokenizer={tokenizer.name}", "task_paths=[tasks]", "max_length=32"]
    assert main(["compile", *words]) == 0
    out = capsys.readouterr().out
    cut = "with their answers they exceed the context of 32 tokens and lose their beginning, as in lm-eval."
    assert f"t_cut: The prompts of 2 of 2 items are cut: {cut}" in out
    assert "12 items or reference answers cannot be scored and are left out:" in out and "- and 2 more" in out
    assert "t_made: exact_match would need generated text; gold answers are scored instead." in out
    (folder,) = (tmp_path / "plans").iterdir()
    assert folder.name == Plan.load(folder).plan_hash


def test_a_run_says_what_is_not_given(
    suite_file: Path, task_folder: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    words = ["experiment=demo", f"tokenizer.path={tokenizer.name}", "train.sequence_length=128", "probe.limit=4"]
    words += ["tokenizer.add_bos=true", f"probe.suite={suite_file}", f"probe.task_paths=[{task_folder}]"]
    config = compose(words)
    (run / "config.yaml").write_text(to_yaml(config))
    assert main(["compile", f"run={run}"]) == 0
    told = capsys.readouterr().err  # the demo has 2,048 pieces
    assert f"warning: {tokenizer.name}: The tokenizer has 340 pieces, the model a vocabulary of 2,048" in told
    (folder,) = (run / "plans").iterdir()
    plan = Plan.load(folder)
    packing = PlanSettings(max_length=128, add_bos=True, tokens_per_row=config.probe.tokens_per_row)
    assert (plan.settings, plan.stored.limit) == (packing, 4)
    assert main(["compile", *words, "limit=5", f"out={tmp_path / 'plan'}"]) == 0
    again = Plan.load(tmp_path / "plan")
    assert (again.settings, again.stored.limit) == (packing, 5)
    assert main(["compile", f"run={run}", "train.steps=3"]) == 2
    assert "Keep one" in capsys.readouterr().err


def test_a_tokenizer_that_was_trained_with_the_data_is_found_if_it_is_the_only_one(
    suite_file: Path, task_folder: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: Capture
) -> None:
    run, prepared = tmp_path / "runs" / "mine", tmp_path / "runs" / "prepared"
    run.mkdir(parents=True)
    config = compose(["experiment=demo", f"probe.suite={suite_file}", f"probe.task_paths=[{task_folder}]"])
    (run / "config.yaml").write_text(to_yaml(config))
    assert main(["compile", f"run={run}"]) == 2
    assert "tokenizer= is missing" in capsys.readouterr().err
    for name in ("a", "b"):  # the same one twice
        (prepared / name).mkdir(parents=True)
        tokenizer.save(prepared / name / "tokenizer.model")
    assert main(["compile", f"run={run}"]) == 0
    train_tokenizer(["the cat runs home quickly"] * 50, prepared / "b" / "tokenizer.model", vocab_size=300)
    capsys.readouterr()
    assert main(["compile", f"run={run}"]) == 2
    assert "Several tokenizers may be the run's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["suite=demo"], ["max_length= is missing", "tokenizer= is missing"]),
        (["max_length=0", "add_bos=maybe"], ["max_length=0 is not a whole number", "add_bos=maybe is not a flag"]),
        (["limit=3", "limit=4"], ["limit= is given twice"]),
        (["task_paths=3"], ["task_paths=3 is not a list of paths. Write one path, or [a,b]."]),
        (["max_lenght=3"], ["max_lenght"]),
        (["run=nowhere"], ["nowhere/config.yaml cannot be read"]),
        (["experiment=demo", "tokenizer=missing.model"], ["missing.model"]),
        (["out=tests"], ["tests would be replaced by a compiled suite, but it is a folder that this program"]),
        (["out=pyproject.toml"], ["pyproject.toml would be replaced by a compiled suite, but it is a file"]),
    ],
)
def test_wrong_arguments_are_named(words: list[str], messages: list[str], capsys: Capture) -> None:
    assert main(["compile", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error


def test_a_task_that_cannot_be_restored_is_refused_when_compiling(
    suite_file: Path, task_folder: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: Capture, monkeypatch: Any
) -> None:
    from pretrain.errors import ProbeError

    def refuse(*_: Any, **__: Any) -> None:
        raise ProbeError("it cannot be restored")

    monkeypatch.setattr("probes.harness.restore_harness", refuse)
    words = [f"suite={suite_file}", f"tokenizer={tokenizer.name}", f"task_paths=[{task_folder}]", "max_length=256"]
    assert main(["compile", *words, f"out={tmp_path / 'plan'}"]) == 1
    assert "it cannot be restored" in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()


def test_torch_is_not_needed(suite_file: Path, task_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom probes.__main__ import main\ncode = main(sys.argv[1:])\n"
        "print(code, sorted({'torch', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    words = [f"suite={suite_file}", f"tokenizer={tokenizer.name}", f"task_paths=[{task_folder}]", "max_length=256"]
    line = [sys.executable, "-c", program, "compile", *words, f"out={tmp_path / 'plan'}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(command.__file__).parents[2])}
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"
