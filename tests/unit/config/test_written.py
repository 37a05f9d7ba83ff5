"""What a configuration's author may write in several ways: paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.arguments import CommandParser
from pretrain.config.load import compose, from_plain, search_folders, to_plain
from pretrain.config.overrides import schema_fields, takes_list
from pretrain.config.written import PATHS
from pretrain.data.commands.inputs import config_of
from pretrain.errors import ConfigError
from pretrain.locate import expand_path
from probes.beside import KEYS
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
