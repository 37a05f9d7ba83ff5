"""`python -m pretrain [overrides…]`: composes and checks a configuration, then trains.

Nothing heavy is imported before the configuration is known to be good, so a wrong key fails within a second. Errors
that are the user's to solve are printed without a traceback; everything else keeps it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import pretrain
from pretrain.errors import ConfigError, FinelineError
from pretrain.launcher import Launched, read_launched
from pretrain.shadowed import require_own_package
from pretrain.terminal import accept_every_character

_FOR_HYDRA = {"--hydra-help": 0, "--info": 1, "-i": 1, "--cfg": 1, "-c": 1, "--package": 1, "-p": 1, "--resolve": 0}
_OPTIONS = ("--help", "-h", "--version", "--multirun", "-m", "--config-dir", "-cd", *_FOR_HYDRA)

_HELP = """\
Fineline pretrains LLaMA-class models and scores downstream tasks at every save.

python -m pretrain [options] [group=option …] [key=value …]

  python -m pretrain experiment=demo                      train the demo
  python -m pretrain experiment=amber_7b --cfg job        print a configuration
  python -m pretrain -m experiment=demo run.seed=0,1,2    one run for each value
  python -m pretrain --config-dir mine experiment=own     with mine/experiment/own.yaml
  bash launch/torchrun.sh experiment=amber_7b             one process per GPU, one or many nodes
  deepspeed --module pretrain experiment=amber_7b engine=deepspeed_zero1    the same by DeepSpeed's launcher

Options
  --cfg job            print the composed configuration
  --info defaults      print which file sets what; also: config, searchpath, plugins
  -m, --multirun       run every combination of values separated by commas
  --config-dir DIR     a further folder of configuration groups
  --version, --help

Groups and their options
{groups}

Keys and their values here
{keys}"""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line, taken apart.

    Attributes:
        overrides: group choices and keys.
        config_dir: a further folder of configuration groups.
        sweep: whether several values make several jobs.
        questions: arguments that ask instead of train, for Hydra.
    """

    overrides: tuple[str, ...]
    config_dir: str | None
    sweep: bool
    questions: tuple[str, ...]


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Splits options from overrides.

    Raises:
        ConfigError: an option that does not exist, or one without its value.
    """
    from pretrain.config.nearest import did_you_mean

    overrides: list[str] = []
    questions: list[str] = []
    config_dir: str | None = None
    sweep = False
    rest = list(arguments)
    while rest:
        argument, equals, value = rest[0], "", ""
        if argument.startswith("--"):
            argument, equals, value = argument.partition("=")
        rest.pop(0)
        if argument in ("--config-dir", "-cd"):
            if not equals and not rest:
                raise ConfigError(f"{argument} needs a folder.")
            config_dir = value if equals else rest.pop(0)
        elif argument in ("--local_rank", "--local-rank"):  # launchers add it; the environment says the same
            if not equals and rest:
                rest.pop(0)
        elif argument in ("--multirun", "-m"):
            sweep = True
        elif argument in _OPTIONS:
            questions += [argument, value] if equals else [argument]
            if _FOR_HYDRA.get(argument) and not equals and rest and "=" not in rest[0]:
                questions.append(rest.pop(0))
        elif argument.startswith("-"):
            raise ConfigError(f"{argument} is not an option.{did_you_mean(argument, _OPTIONS)} See --help.")
        else:
            overrides.append(argument)
    return CommandLine(tuple(overrides), config_dir, sweep, tuple(questions))


def main(arguments: Sequence[str]) -> int:
    """Runs one command line; returns the exit code."""
    accept_every_character()
    try:
        line = parse_command_line(arguments)
        if line.questions:
            return _answer(line)
        if line.sweep:
            from pretrain.sweep import run

            return run(line.overrides, config_dir=line.config_dir)
        return _train(line)
    except FinelineError as error:
        _report(error)
        return error.exit_code


def _train(line: CommandLine) -> int:
    from pretrain.config.checks import check
    from pretrain.config.load import compose

    launched = read_launched()
    require_own_package()
    config = compose(line.overrides, config_dir=line.config_dir)
    check(config, launched.world_size)
    let_segments_grow(os.environ)
    from pretrain.train import train

    return train(config)


def let_segments_grow(environment: MutableMapping[str, str]) -> None:
    """Has torch's allocator extend what it holds of a GPU, as torchtitan has it, unless the user says something else.

    Microbatches and rows of scoring differ in size: fixed segments leave gaps that a nearly full GPU has no room for.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in environment:  # the older name, which counts as well
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def _answer(line: CommandLine) -> int:
    """What is asked most is answered here, quickly; the rest by Hydra."""
    from pretrain.config.load import compose, hydra_arguments, search_folders, to_yaml
    from pretrain.config.overrides import group_options

    asked = line.questions
    if "--version" in asked:
        print(f"fineline {pretrain.__version__}")
        return 0
    if asked == ("--hydra-help",):
        return _ask_hydra(asked, [])
    text = to_yaml(compose(line.overrides, config_dir=line.config_dir))
    if "--help" in asked or "-h" in asked:
        options = group_options(search_folders(line.config_dir))
        groups = "\n".join(f"  {name + ':':<13}{', '.join(options[name])}" for name in sorted(options))
        print(_HELP.format(groups=groups, keys=text), end="")
        return 0
    if asked in (("--cfg", "job"), ("-c", "job")):
        print(text, end="")
        return 0
    return _ask_hydra(asked, hydra_arguments(line.overrides, config_dir=line.config_dir))


def _ask_hydra(questions: Sequence[str], overrides: Sequence[str]) -> int:
    import hydra

    from pretrain.config.load import config_folder
    from pretrain.config.store import register

    register()
    sys.argv = ["pretrain", *questions, *overrides]
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="pretrain")(lambda _: None)()
    return 0


def _report(error: FinelineError) -> None:
    """Prints an error for its reader: configuration errors are the same on every rank, so one rank tells them."""
    try:
        launched = read_launched()
    except FinelineError:  # which is what is reported
        launched = Launched()
    rank = launched.rank
    if isinstance(error, ConfigError):
        if rank == 0:
            problems = error.problems
            title = "The configuration cannot run:" if len(problems) == 1 else f"{len(problems)} problems:"
            print("\n  - ".join([title, *problems]), file=sys.stderr, flush=True)
        else:
            time.sleep(2)  # the launcher ends all ranks as soon as one has left: let rank 0 speak first
        return
    where = f" on rank {rank}" if launched.world_size > 1 else ""
    print(f"{type(error).__name__}{where}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
