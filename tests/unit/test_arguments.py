"""Command lines: any order of options and words, and the nearest right name for a wrong one."""

from __future__ import annotations

import argparse
import importlib
import itertools

import pytest

from pretrain.arguments import CommandParser
from pretrain.data.__main__ import COMMANDS as DATA_COMMANDS
from pretrain.data.__main__ import main as data
from probes.__main__ import COMMANDS as PROBE_COMMANDS
from probes.__main__ import main as probes

MODULES = [f"pretrain.data.commands.{name}" for name in DATA_COMMANDS]
MODULES += [f"probes.commands.{name}" for name in PROBE_COMMANDS]


def parser_of(module: str) -> CommandParser:
    parser = CommandParser("command", description="")
    importlib.import_module(module).add_arguments(parser)
    return parser


def pieces(parser: argparse.ArgumentParser) -> list[list[str]]:
    """Words for every positional argument, and every option that takes one value, with the value."""
    words: list[list[str]] = []
    for action in parser._actions:
        value = str((action.choices or ["0.5" if action.metavar == "SHARE" else "7"])[0])
        if not action.option_strings:
            words += [["first=1"], ["second=2"]] if action.nargs in ("*", "+") else [["lone"]]
        elif action.nargs is None:
            words.append([action.option_strings[0], value])
    return words


@pytest.mark.parametrize("module", MODULES)
def test_options_and_words_stand_in_any_order(module: str) -> None:
    parser = parser_of(module)
    positional = [one for one in pieces(parser) if not one[0].startswith("-")]
    options = [one for one in pieces(parser) if one[0].startswith("-")][:3]
    expected = parser_of(module).read(list(itertools.chain(*positional, *options)))
    for cut in range(len(positional) + 1):
        for inner in range(len(options) + 1):
            words = [*options[:inner], *positional[:cut], *options[inner:], *positional[cut:]]
            assert parser_of(module).read(list(itertools.chain(*words))) == expected


def test_an_override_after_an_option_is_an_override(capsys: pytest.CaptureFixture[str]) -> None:
    assert data(["prepare", "experiment=dmeo", "--workers", "1", "trian.steps=X"]) == 2
    told = capsys.readouterr().err
    assert "Did you mean demo" in told and "Did you mean train.steps" in told


@pytest.mark.parametrize(
    ("main", "words", "expected"),
    [
        (data, ["prepare", "experiment=demo", "--wokers", "2"], "--wokers is not an option. Did you mean --workers?"),
        (data, ["show", "--stepp=3", "runs/demo"], "--stepp is not an option. Did you mean --step?"),
        (data, ["prepare", "--work", "2"], "--work is not an option. Did you mean --workers?"),
        (data, ["prepaer", "experiment=demo"], "prepaer is not a command. Did you mean prepare?"),
        (probes, ["report", "runs/demo", "--ouput=page.html"], "--ouput is not an option. Did you mean --output?"),
        (probes, ["state", "--references", "a.csv", "b.csv"], "Put these before --references"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(main, words, expected, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2 and expected in capsys.readouterr().err


def test_several_values_may_be_given_one_by_one_before_the_words() -> None:
    read = parser_of("probes.commands.state").read(["--references=a.csv", "runs/mine", "--references=b.csv"])
    assert (read.references, read.paths) == (["a.csv", "b.csv"], ["runs/mine"])


def test_an_option_may_take_a_negative_number() -> None:
    assert parser_of("probes.commands.fit").read(["runs/mine", "--draws", "-1"]).draws == -1
