"""`python -m pretrain` as its user meets it, in a process of its own: exit codes, messages, what is never touched."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pretrain
from pretrain.__main__ import let_segments_grow, parse_command_line
from pretrain.config.load import compose, to_plain
from pretrain.errors import ConfigError

HEAVY = {"torch", "megatron", "deepspeed", "numpy", "sentencepiece", "lm_eval", "wandb", "transformers"}
CHECKOUT = Path(pretrain.__file__).parents[1]
TWO = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""Variables of the first of two processes."""


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with its imports logged; asserts that it left nothing behind and loaded nothing heavy."""
    variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pretrain", *arguments],
        cwd=cwd,
        env={**variables, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = done.stderr.splitlines()
    imported = {line.rsplit("|", 1)[-1].strip() for line in lines if line.startswith("import time:")}
    assert "pretrain.errors" in imported, "the log of imports must be readable, or the next line proves nothing"
    assert not imported & HEAVY
    assert list(cwd.iterdir()) == []
    done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done


def test_wrong_overrides_end_with_code_2_and_all_nearest_names_before_torch_is_loaded(tmp_path: Path) -> None:
    done = run("experiment=dmeo", "trian.steps=3", "track=[wandbb]", "model.hidden_size=wide", cwd=tmp_path)
    assert done.returncode == 2
    assert "4 problems:" in done.stderr
    for expected in ("Did you mean demo", "train.steps", "Did you mean wandb", "model.hidden_size takes int, not wide"):
        assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_configuration_that_cannot_run_ends_with_code_2_before_torch_is_loaded(tmp_path: Path) -> None:
    done = run("experiment=demo", "train.steps=10", "parallel.tensor=4", cwd=tmp_path, **TWO)
    assert done.returncode == 2
    assert "longer than the run of 10 steps" in done.stderr
    assert "4 x 1 x 1 = 4 processes hold one model, but 2 were started" in done.stderr


def test_only_rank_0_tells_what_is_wrong_with_a_configuration(tmp_path: Path) -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    done = run("experiment=dmeo", cwd=tmp_path, **launched)
    assert (done.returncode, done.stderr) == (2, "")


def test_no_arguments_say_what_is_missing(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 2
    assert "experiment=demo" in done.stderr


def test_cfg_job_prints_the_composed_configuration_and_nothing_else(tmp_path: Path) -> None:
    done = run("--cfg", "job", "experiment=demo", "parallel.tensor=2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout) == to_plain(compose(["experiment=demo", "parallel.tensor=2"]))


def test_cfg_job_takes_little_more_time_than_loading_hydra(tmp_path: Path) -> None:
    """Half a second on a machine where `import hydra` takes 0.15 s; the ratio holds on slow and busy ones too."""

    def cpu_seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(cpu_seconds("-m", "pretrain", "--cfg", "job"), cpu_seconds("-c", "import hydra")) for _ in range(3)]
    assert min(ours for ours, _ in pairs) < 3.5 * min(hydra for _, hydra in pairs)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--help",), r"(?s)Groups and their options.*  model: +amber_160m, amber_7b, demo.*train:\n  steps: null"),
        (("--help", "experiment=demo"), r"steps: 1050"),
        (("--version",), rf"fineline {re.escape(pretrain.__version__)}"),
        (("--info", "defaults", "experiment=demo"), r"experiment/demo"),
        (("--cfg", "hydra", "experiment=demo"), r"output_subdir: null"),
        (("--cfg", "job", "--package", "model"), r"num_layers: 4"),
    ],
)
def test_questions_are_answered(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout)


def test_a_question_about_wrong_overrides_is_answered_with_what_is_wrong(tmp_path: Path) -> None:
    done = run("--info", "defaults", "model=ambr_7b", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean amber_7b" in done.stderr


def test_an_unknown_option_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="--multirn is not an option. Did you mean --multirun"):
        parse_command_line(["--multirn"])
    with pytest.raises(ConfigError, match="--config-dir needs a folder"):
        parse_command_line(["--config-dir"])


def test_options_may_stand_anywhere_and_take_their_value_either_way() -> None:
    line = parse_command_line(["a=1", "--cfg=job", "-m", "--config-dir", "mine", "b=2"])
    assert (line.overrides, line.questions, line.sweep, line.config_dir) == (
        ("a=1", "b=2"),
        ("--cfg", "job"),
        True,
        "mine",
    )
    assert parse_command_line(["--info", "a=1"]).questions == ("--info",)


def test_the_rank_that_launchers_add_is_tolerated() -> None:
    for added in (["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]):
        line = parse_command_line([*added, "a=1"])
        assert (line.overrides, line.questions) == (("a=1",), ())
    assert parse_command_line(["--config-dir=mine"]).config_dir == "mine"


@pytest.mark.parametrize("own", [{}, {"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "x:1"}])
def test_gpu_memory_grows_in_place_unless_the_user_says_something_else(own: dict[str, str]) -> None:
    environment = dict(own)
    let_segments_grow(environment)
    assert environment == (own or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
