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
from pretrain.errors import ConfigError, DataError
from pretrain.locate import expand_path

if TYPE_CHECKING:
    from pretrain.data.files import InputFile
    from pretrain.data.records import Rejected

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


class Unread:
    """What of the text gave no document while a command read a sample of it; `prepare` has its own limits for that.

    Args:
        config: its `data.max_damaged_files` says how many files may be unreadable.
    """

    def __init__(self, config: RunConfig) -> None:
        self._most_damaged = config.data.max_damaged_files
        self._damaged: set[str] = set()
        self._num_lines = self._num_bytes = 0
        self._largest: Rejected | None = None

    def add(self, item: Rejected) -> None:
        """Takes one.

        Raises:
            DataError: a file cannot be read.
        """
        if item.is_empty:
            return
        if item.is_damage:
            self._damaged.add(item.file)
        if len(self._damaged) > self._most_damaged:
            raise DataError(f"{item.file}: {item.detail} Mend it, or list the text without it.")
        self._num_lines += 1
        self._num_bytes += item.num_bytes
        if self._largest is None or item.num_bytes > self._largest.num_bytes:
            self._largest = item

    def tell(self) -> None:
        """Says on stderr how much it was, and which was the largest."""
        if self._largest is not None:
            print(
                f"{self._num_lines:,} lines of the sample gave no document ({self._num_bytes:,} bytes). The largest is "
                f"{self._largest.file}, line {self._largest.line}: {self._largest.detail}",
                file=sys.stderr,
            )
