"""Wrong overrides: each is named, all at once, with what was probably meant."""

from __future__ import annotations

import os
import shlex

import pytest

from pretrain.config.load import compose, config_folder
from pretrain.config.nearest import nearest
from pretrain.config.overrides import expand, group_options, judge, parse, quoted, schema_fields
from pretrain.errors import ConfigError

CASES = [
    ("trian.steps=3", "Did you mean train.steps"),
    ("steps=3", "train.steps"),
    ("batch_size=8", "train.micro_batch_size"),
    ("optimizer.beta=0.9", "optimizer.beta1"),
    ("learning_rate=1e-3", "schedule.learning_rate"),
    ("+train.foo=2", "there is no key or group train.foo"),
    ("moddel=demo", "Did you mean model"),
    ("model=dmeo", "Did you mean demo? Options: amber_160m, amber_7b, demo, k2_65b, nano, nano_13b, nano_3b, "),
    ("track=[consol,jsonl]", "Did you mean console"),
    ("experiment=", "Options: amber_160m_h200, amber_7b, amber_7b_fineline, "),
    ("train.steps=many", "train.steps='many' is not a number of steps. Write a number and a unit"),
    ("train.steps=1.5", "train.steps=1.5 is not a whole number of steps"),
    ("model.hidden_size=null", "model.hidden_size takes int, not null"),
    ("parallel.sequence=5", "takes true or false, not 5"),
    ("train=3", "train is a section"),
    ("model={num_layers:3}", "model.KEY=VALUE"),
    ("~train.steps", "cannot be removed"),
    ("~train.stepps", "Did you mean train.steps"),
    ("train.steps=1,2", "Add -m"),
    ("experiment=[demo", "not an override"),
    ("demo", "not an override"),
    ("data.sources.web.wieght=1", "Did you mean weight"),
    ("data.sources.web.paths=a.jsonl,b.jsonl", "a list is 'data.sources.web.paths=[a.jsonl,b.jsonl]'"),
    ("run.name=a,b", "one value with commas is 'run.name=\"a,b\"'"),
    ("checkpoint.early=soon", "checkpoint.early='soon' is not a number of steps"),
    ("checkpoint.start_step=null", "checkpoint.start_step=None is not a number of steps"),
]


@pytest.mark.parametrize(("override", "expected"), CASES)
def test_a_wrong_override_is_named_with_the_remedy(override: str, expected: str) -> None:
    (problem,) = judge([override], options=group_options([config_folder()]))
    assert expected in problem
    assert override.split("=")[0].lstrip("+~") in problem


def test_all_wrong_overrides_are_told_at_once_and_in_order() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=demo", *(override for override, _ in CASES)])
    assert len(caught.value.problems) == len(CASES)
    for problem, (_, expected) in zip(caught.value.problems, CASES, strict=True):
        assert expected in problem


@pytest.mark.parametrize(
    "override",
    [
        "train.tokens=2_000_000",
        "run.name=12",
        "checkpoint.keep=null",
        "probe=off",
        "track=[]",
        "hydra.verbose=true",
        "run.name=${model.num_layers}",
    ],
)
def test_a_right_override_is_not_judged_wrong(override: str) -> None:
    assert judge([override], options=group_options([config_folder()])) == []


def test_what_hydra_alone_finds_is_a_config_error_too() -> None:
    with pytest.raises(ConfigError, match="sources"):
        compose(["+data.sources={web:{pahts:[a]}}"])
    with pytest.raises(ConfigError, match="nowhere"):
        compose(["run.name=${nowhere}"])


def test_only_overrides_of_source_fields_are_rewritten() -> None:
    assert expand(["data.sources.a.paths=[x=1]", "data=files", "~data.sources.b"]) == [
        "+data.sources={a:{paths:[x=1]}}",
        "data=files",
        "~data.sources.b",
    ]


VALUES = [
    "/a=b",
    "/a#b",
    "/data (old)/x",
    "~/tokens",
    "/données/ü",
    "it's",
    'a "b" c',
    "a;b&c|d<e>f`g!h^",
    "$(x)",
    "a\\",
]


@pytest.mark.parametrize("value", VALUES)
def test_the_hint_is_the_users_own_value_as_shell_and_hydra_take_it(value: str) -> None:
    text = f"data.prepared_dir={value}"
    hint = quoted(text)
    assert hint is not None
    (typed,) = shlex.split(hint)
    assert parse(typed).value() == value
    assert compose([typed, "experiment=demo"]).data.prepared_dir == os.path.expanduser(value)
    if judge([text], options=group_options([config_folder()])):
        with pytest.raises(ValueError) as refused:
            parse(text)
        assert str(refused.value).endswith(f"Write it with quotes: {hint}")


def test_in_a_list_the_entries_that_need_it_are_quoted() -> None:
    hint = quoted("data.sources.web.paths=[/données/*.gz,b.jsonl,a=b]")
    assert hint == """'data.sources.web.paths=["/données/*.gz",b.jsonl,"a=b"]'"""
    assert parse(shlex.split(hint)[0]).value() == ["/données/*.gz", "b.jsonl", "a=b"]
    assert quoted("track=[console") is None


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("data.token_chunks=/one/file", "data.token_chunks", ["/one/file"]),
        ("probe.references='runs/a b'", "probe.references", ["runs/a b"]),
        ("probe.task_paths=[a,b]", "probe.task_paths", ["a", "b"]),
        ("checkpoint.early=7", "checkpoint.early", [7]),
        ("schedule.step_shares=0.5", "schedule.step_shares", [0.5]),
        ("tokenizer.accept_loss=tabs", "tokenizer.accept_loss", ["tabs"]),
        ("track.wandb.tags=mine", "track.wandb.tags", ["mine"]),
    ],
)
def test_one_value_of_a_list_is_a_list_of_one(override: str, key: str, expected: list[object]) -> None:
    value = compose(["experiment=demo", override])
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected


def test_one_path_of_a_source_is_a_list_of_one() -> None:
    sources = compose(["data.sources.web.paths=/one/file", "data.sources.code.paths=[a,b]"]).data.sources
    assert sources["web"].paths == ["/one/file"] and sources["code"].paths == ["a", "b"]


def test_every_key_is_nearest_to_itself() -> None:
    for key in schema_fields():
        assert nearest(key, schema_fields())[0] == key
