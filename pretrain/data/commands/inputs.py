"""What a command is given: files, or a run's configuration; and the files that either stands for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.data import DataConfig, SourceConfig
from pretrain.config.load import compose
from pretrain.config.run import RunConfig
from pretrain.config.tokenizer import TokenizerConfig
from pretrain.errors import ConfigError
from pretrain.locate import expand_path

if TYPE_CHECKING:
    from pretrain.data.files import InputFile

INPUTS_HELP = "KEY=VALUE: a run's configuration, whose sources are sampled by weight; or files, globs, bundled:NAME"


def config_of(inputs: Sequence[str], *, text_key: str | None = None, holdout_fraction: float = 0.0) -> RunConfig:
    """A run's configuration: composed from KEY=VALUE, or one source over the files.

    Args:
        inputs: all of one kind.
        text_key: field that holds the text of files; a configuration has its own.
        holdout_fraction: share of the files' documents that is held out.

    Raises:
        ConfigError: files and KEY=VALUE together, or a configuration with `text_key`.
    """
    keys = [given for given in inputs if "=" in given and not Path(given).exists()]
    if not keys:
        source = SourceConfig(paths=[expand_path(given) for given in inputs])
        data = DataConfig(sources={"files": source}, text_key=text_key or "text", holdout_fraction=holdout_fraction)
        return RunConfig(data=data, tokenizer=TokenizerConfig())
    if len(keys) < len(inputs):
        files = [given for given in inputs if given not in keys]
        raise ConfigError(f"Give files ({files[0]}) or KEY=VALUE ({keys[0]}), not both: a configuration has its files.")
    if text_key is not None:
        raise ConfigError("--text-key is for files. A configuration has data.text_key=…")
    return compose(keys)


def files_of(config: RunConfig) -> dict[str, list[InputFile]]:
    """Files of each source; says on stderr which were listed more than once.

    Raises:
        ConfigError: there are no sources.
        DataError: files that are not there.
    """
    from pretrain.data.files import find_files, tell_repeats

    if not config.data.sources:
        raise ConfigError("data.sources is empty. Name at least one source, or give files.")
    files = {name: find_files(s.paths, key=f"data.sources.{name}.paths") for name, s in config.data.sources.items()}
    for repeat in tell_repeats(files):
        print(repeat, file=sys.stderr)
    return files
