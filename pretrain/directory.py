"""The run directory: whose it is, and what it says about the run before anything is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pretrain.config.load import data_changes, difference, load_yaml, to_yaml
from pretrain.config.run import RunConfig
from pretrain.durable import replace_file
from pretrain.errors import ConfigError

CONFIG_NAME = "config.yaml"
CHECKPOINTS = "checkpoints"
EXPORTS = "export"


def run_directory(config: RunConfig) -> Path:
    """Where the run lives: `<run.dir>/<run.name>`."""
    return Path(config.run.dir) / config.run.name


def claim(config: RunConfig) -> Path:
    """Makes the run directory, or takes it up again. Only one rank calls it.

    The `config.yaml` of a run that goes on stays as it is: a start may still be refused. See `record`.

    Returns:
        The directory. It has a `config.yaml`.

    Raises:
        ConfigError: the directory belongs to a run with another model, data, optimizer or seed; or with other shares
            of sources or ranges to skip, and data.accept_changes is not set.
    """
    directory = run_directory(config)
    path = directory / CONFIG_NAME
    if path.exists():
        before = load_yaml(path)
        differences = difference(before, config)
        changes = data_changes(before, config)
        if differences or (changes and not config.data.accept_changes):
            listed = "\n      ".join([*differences, *changes])
            raise ConfigError(
                f"{directory} belongs to a run with another configuration:\n      {listed}\n"
                f"    Choose another run.name, restore these values, or remove the directory to start anew."
                + ("" if differences else " Or accept the change from here on with data.accept_changes=true.")
            )
        return directory
    if (directory / CHECKPOINTS).exists():
        raise ConfigError(
            f"{directory} holds checkpoints but no {CONFIG_NAME}, so it cannot be told whose they are. "
            f"Choose another run.name, or put the run's {CONFIG_NAME} back."
        )
    record(config)
    return directory


def record(config: RunConfig) -> None:
    """Writes the configuration into the run directory: what `watch`, `release` and the next start read of it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    # An acceptance is for one start: the recorded one must not be taken for the user's word on the next change.
    train = dataclasses.replace(config.train, accept_new_length=False)
    kept = dataclasses.replace(config, train=train)
    path = run_directory(config) / CONFIG_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, to_yaml(kept))
    except OSError as error:
        raise ConfigError(f"run.dir={config.run.dir}: {error}. Choose a folder that can be written.") from None
