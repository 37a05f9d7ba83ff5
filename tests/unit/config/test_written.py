"""What a configuration's author may write in several ways: paths and lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.arguments import CommandParser
from pretrain.config.load import compose, from_plain, search_folders, to_plain
from pretrain.config.overrides import schema_fields, takes_list
from pretrain.config.written import DURATIONS, PATHS
from pretrain.data.commands.inputs import config_of
from pretrain.errors import ConfigError
from pretrain.locate import expand_path
from probes.beside import KEYS
from probes.commands import trust
from probes.commands.arguments import parse_keys


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("SCRATHC", raising=False)


def test_home_and_variables_are_replaced_in_every_path_of_a_configuration() -> None:
    wanted = {key: [f"~/{key}", f"$SCRATCH/{key}"] for key in PATHS if schema_fields()[key].startswith("list[")}
    single = {key: f"~/{key}" for key in PATHS if key not in wanted}
    overrides = [f'{key}=["~/{key}","$SCRATCH/{key}"]' for key in wanted]
    overrides += [f'{key}="{value}"' for key, value in single.items()]
    overrides += ['data.sources.web.paths="${oc.env:SCRATCH}/*.gz"', "data.sources.b.paths=$SCRATCH/b"]
    config = compose([*overrides, "data.sources.c.paths=${oc.env:SCRATCH}"])
    plain = to_plain(config)

    def value(key: str) -> object:
        section, name = key.split(".")
        return plain[section][name]

    for key in wanted:
        assert value(key) == [f"/home/me/{key}", f"/scratch/me/{key}"]
    for key in single:
        assert value(key) == f"/home/me/{key}"
    paths = [config.data.sources[name].paths for name in ("web", "b", "c")]
    assert paths == [["/scratch/me/*.gz"], ["/scratch/me/b"], ["/scratch/me"]]
    assert from_plain(plain) == config  # what is recorded is read again as it was


@pytest.mark.parametrize("key", [*PATHS, "data.sources.web.paths"])
def test_an_empty_path_is_refused_by_its_key(key: str) -> None:
    value = "['']" if takes_list(key) else "''"
    with pytest.raises(ConfigError, match=rf"{key}(\[0\])?= is empty\. Give a path"):
        compose(["experiment=demo", f"{key}={value}"])


def test_every_key_that_holds_a_path_is_known() -> None:
    hints = ("_dir", "_paths", ".path", ".dir", "plan", "suite", "start_from", "references", "token_chunks")
    assert {key for key in schema_fields() if key.endswith(hints)} - {"data.expected_chunks"} == set(PATHS)


def test_every_variable_that_is_not_set_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError) as refused:
        compose(
            ["run.dir=$SCRATHC/runs", "probe.task_paths=[$SCRATCH,$SCRATHC/b]", 'tokenizer.path="~nobody7/t.model"']
        )
    first, second, third = sorted(refused.value.problems)
    assert first.startswith("probe.task_paths[1]=$SCRATHC/b: the environment variable SCRATHC is not set")
    assert second.startswith("run.dir=$SCRATHC/runs: the environment variable SCRATHC is not set")
    assert third.startswith("tokenizer.path=~nobody7/t.model: there is no user of that name")


def test_paths_of_commands_are_expanded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = CommandParser("command", description="")
    parser.add_argument("--output", type=Path)
    assert parser.read(["--output=~/page.html"]).output == Path("/home/me/page.html")
    with pytest.raises(SystemExit):
        parser.read(["--output=$SCRATHC/page.html"])
    values = parse_keys(["data_dir=~/evals", "task_paths=$SCRATCH/tasks", "suite=amber"], KEYS)
    assert values == {"data_dir": "/home/me/evals", "task_paths": ["/scratch/me/tasks"], "suite": "amber"}
    assert config_of(["~/corpus/*.gz"]).data.sources["files"].paths == ["/home/me/corpus/*.gz"]
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert search_folders("$SCRATCH")[0] == tmp_path


def test_addresses_and_plain_names_stay_as_they_are() -> None:
    for text in ("s3://bucket/a~b", "bundled:web", "a/b c", "published:pythia", "./~file"):
        assert expand_path(text) == text
    assert expand_path("s3://bucket$SCRATCH") == "s3://bucket/scratch/me"


@pytest.mark.parametrize("written", ["2000000000", "2e9", "2B", "'2B tokens'", "2_000_000_000"])
def test_counts_of_tokens_are_written_like_lengths(written: str) -> None:
    config = compose(
        [
            "experiment=demo",
            "train.steps=null",
            f"train.tokens={written}",
            f"data.validation_tokens={written}",
            f"data.sources.web.tokens={written}",
            f"data.sources.web.expected_tokens={written}",
        ]
    )
    source = config.data.sources["web"]
    for value in (config.train.tokens, config.data.validation_tokens, source.tokens, source.expected_tokens):
        assert type(value) is int and value == 2_000_000_000
    assert compose(["experiment=demo", "train.steps=null", "train.tokens=2000000000"]).total_steps == config.total_steps


def test_counts_of_steps_are_written_like_lengths() -> None:
    config = compose(["train.steps=10k", "checkpoint.start_step=1e3", "checkpoint.early=[0,1k,'2 steps',3e3]"])
    assert (config.train.steps, config.checkpoint.start_step, config.checkpoint.early) == (
        10_000,
        1000,
        [0, 1000, 2, 3000],
    )


def test_a_file_may_write_lengths_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ntrain: {steps: null, tokens: 10B tokens}\nschedule: {warmup: 2000}\n"
    text += "checkpoint: {every: 1e3}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    config = compose(["experiment=mine"], config_dir=tmp_path)
    assert config.train.tokens == 10_000_000_000
    assert (config.schedule.warmup, config.checkpoint.every) == ("2000 steps", "1000 steps")


@pytest.mark.parametrize("key", DURATIONS)
def test_a_duration_without_its_unit_counts_steps_and_is_recorded_with_it(key: str) -> None:
    def value(written: str) -> object:
        section = compose([f"{key}={written}"])
        for part in key.split("."):
            section = getattr(section, part)
        return section

    assert [value(written) for written in ("20", "2e1", "0.02k")] == ["20 steps"] * 3
    assert value("'2B tokens'") == "2B tokens"  # as it was written: checkpoints know a run by it


def test_a_stage_of_the_ramp_may_end_at_a_number_of_steps() -> None:
    config = compose(["experiment=demo", "train.batch_ramp={until: 9, global_batch_size: 4}"])
    assert config.train.batch_ramp[0].until == "9 steps"
    assert config.batch_sizes.samples(9) == 36


def test_what_is_no_length_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ntrain: {steps: 10 tokens}\ncheckpoint: {early: [0, soon]}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        compose(["experiment=mine"], config_dir=tmp_path)
    first, second = refused.value.problems
    assert first == "train.steps='10 tokens' counts tokens, where steps are counted. Give steps."
    assert second.startswith("checkpoint.early[1]='soon' is not a number of steps")


def test_options_of_commands_take_the_same_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("command", description="")
    trust.add_arguments(parser)
    for written in ("70B", "7e10", "70B tokens", "70_000_000_000"):
        assert parser.read(["runs/mine", "--at-tokens", written]).at_tokens == 70_000_000_000
    with pytest.raises(SystemExit):
        parser.read(["runs/mine", "--at-tokens", "soon"])
    assert "argument --at-tokens: 'soon' is not a number of tokens. Write a number" in capsys.readouterr().err


def test_one_value_in_a_file_where_a_list_belongs_is_refused_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndata: {token_chunks: /one/file}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"write one value as \[VALUE\]\. \(at data\.token_chunks\)"):
        compose(["experiment=mine"], config_dir=tmp_path)
