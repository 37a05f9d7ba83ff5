"""The run directory: whose it is, and what it says about the run before anything is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.load import (
    BrokenConfigError,
    config_hash,
    data_changes,
    difference,
    identity_hash,
    load_yaml,
    to_yaml,
)
from pretrain.config.run import RunConfig
from pretrain.durable import replace_file
from pretrain.errors import ConfigError
from pretrain.locate import CHECKPOINTS, CONFIG_NAME
from pretrain.places import listed, not_of_a_run, what_is

if TYPE_CHECKING:
    from pretrain.checkpoint.reader import CheckpointInfo

FindSaves = Callable[[Path], "list[CheckpointInfo]"]


def run_directory(config: RunConfig) -> Path:
    """Where the run lives: `<run.dir>/<run.name>`."""
    return Path(config.run.dir) / config.run.name


def claim(config: RunConfig, *, find_saves: FindSaves, warn: Callable[[str], None]) -> Path:
    """Makes the run directory, or takes it up again. Only one rank calls it.

    Where `config.yaml` is missing, empty or cut off, it is written anew if the newest checkpoint is of this run.
    Otherwise the file of a run that goes on stays as it is: a start may still be refused. See `record`.

    Args:
        config: the run.
        find_saves: lists the checkpoints in a folder (`pretrain.checkpoint.reader.list_checkpoints`).
        warn: told that a `config.yaml` was written anew, and why.

    Returns:
        The directory. It has a `config.yaml`.

    Raises:
        ConfigError: the directory belongs to a run with another model, data, optimizer or seed; or with other shares
            of sources or ranges to skip, and data.accept_changes is not set.
    """
    directory = run_directory(config)
    try:
        before = _recorded(config, directory, find_saves, warn)
    except PermissionError as error:
        raise ConfigError(f"run.dir={config.run.dir}: {error}. Choose a folder that you may read and write.") from None
    if before is not None:
        differences = difference(before, config)
        changes = data_changes(before, config)
        if differences or (changes and not config.data.accept_changes):
            listed = "\n      ".join([*differences, *changes])
            raise ConfigError(
                f"{directory} belongs to a run with another configuration:\n      {listed}\n"
                f"    Choose another run.name, or restore these values."
                + ("" if differences else " Or accept the change from here on with data.accept_changes=true.")
            )
        return directory
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


def _recorded(
    config: RunConfig, directory: Path, find_saves: FindSaves, warn: Callable[[str], None]
) -> RunConfig | None:
    """The configuration that the run directory records; None if there is none and this run may write its own."""
    path = directory / CONFIG_NAME
    what = f"{path} is missing"
    try:
        if path.exists():
            return load_yaml(path)
    except BrokenConfigError as error:
        what = error.what
    except ConfigError as error:
        raise ConfigError(
            f"{path} is not the configuration of a run of this version: {error} Choose another run.name or run.dir."
        ) from None
    saved = find_saves(directory / CHECKPOINTS)
    if not saved:
        if foreign := not_of_a_run(directory):
            raise ConfigError(
                f"run.dir={config.run.dir} and run.name={config.run.name}: {directory} {what_is(directory)}, and no "
                f"run leaves {listed(foreign)} there. Choose a run.name whose folder is new, empty, or a run directory."
            )
        if path.exists():
            warn(f"{what}. The run has no checkpoint yet, so the file is written anew.")
        return None
    remedy = f"choose another run.name, or put a copy of the run's {CONFIG_NAME} back."
    usable = [info.manifest for info in saved if info.manifest is not None]
    if not usable:
        problem = f"no checkpoint in {directory / CHECKPOINTS} can be read, so nothing says whose run this is"
        raise ConfigError(f"{what}, and {problem}. Restore a checkpoint, {remedy}")
    newest = f"the checkpoint of step {usable[-1].step:,}"
    if usable[-1].meta.identity_hash != identity_hash(config):
        raise ConfigError(
            f"{what}, and {newest} was made by another configuration: model, data, tokenizer, optimizer, schedule, "
            f"precision, batch size, sequence length or seed differ. Start the run with the command that made it, "
            f"{remedy}"
        )
    unknown = ""
    if usable[-1].meta.config_hash != config_hash(config):
        unknown = (
            " Settings that may change between two starts have changed, and nothing says which: check train.steps."
        )
    warn(f"{what}. It is written anew, because {newest} was made by the configuration that is given now.{unknown}")
    return None
