"""Raw text to a folder of token shards, once: fingerprint, tokenizer, shards, manifest, one rename.

A folder appears complete or not at all. Everything is written in `<folder>.writing-<pid>` and renamed at the end;
a second process waits for the first and takes its folder, and what a killed one left is removed by the next.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.run import RunConfig
from pretrain.data.documents import read_documents
from pretrain.data.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Text,
    build_manifest,
    check_matches,
    describe_text,
    find_text,
    fingerprint,
    read_manifest,
)
from pretrain.data.shards import SPLITS, Encoder, SplitCounts, is_held_out, write_source
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer
from pretrain.data.tokens import TokenStream
from pretrain.errors import DataError

Progress = Callable[[str], None]

# Starting processes takes about as long as one of them needs for this much packed text.
_BYTES_WORTH_PROCESSES = 16_000_000
_MOST_PROCESSES = 16


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """One source, ready to read.

    Attributes:
        name: its name in `data.sources`.
        train: training tokens, on disk.
        validation_tokens: int32, at most `data.validation_tokens`, from the start of the validation split.
        validation_token_bytes: int32 of the same length, UTF-8 bytes of text each of them stands for.
    """

    name: str
    train: TokenStream
    validation_tokens: np.ndarray
    validation_token_bytes: np.ndarray

    def validation_bytes(self, start: int, stop: int) -> int:
        """UTF-8 bytes of text of `validation_tokens[start:stop]`; BOS and EOS count 0."""
        return int(self.validation_token_bytes[start:stop].sum(dtype=np.int64))


@dataclass(frozen=True, slots=True)
class PreparedData:
    """All sources of a run, in the configuration's order.

    Attributes:
        directory: the folder they are in.
        tokenizer: the tokenizer they were made with.
        manifest: see `pretrain.data.manifest`.
        sources: by name.
    """

    directory: Path
    tokenizer: Tokenizer
    manifest: Mapping[str, Any]
    sources: dict[str, PreparedSource]


def ensure_prepared(config: RunConfig, *, run_root: Path, progress: Progress | None = None) -> PreparedData:
    """Opens the prepared data of a run, and makes it first where it does not exist.

    Safe to call from several processes at once and after one of them was killed. Where `data.prepared_dir` is null,
    all text is read to find its fingerprint; where it names a complete folder, text is not read.

    Args:
        config: the run.
        run_root: `run.dir`; holds `prepared/<fingerprint>` where `data.prepared_dir` is null.
        progress: called with a sentence now and then.

    Raises:
        ConfigError, DataError, TokenizerError: what is wrong with sources, text or tokenizer.
    """
    given = _given_tokenizer(config)
    say = progress or (lambda message: None)
    if config.data.prepared_dir is not None:
        directory = Path(config.data.prepared_dir)
        text = None
    else:
        text = describe_text(find_text(config.data))
        directory = run_root / "prepared" / fingerprint(config, text=text, tokenizer=given)
    if not (directory / MANIFEST_NAME).exists():
        try:
            _prepare(config, directory=directory, text=text, given=given, say=say)
        except OSError as error:
            raise DataError(f"{directory} cannot be prepared: {error}. Set data.prepared_dir elsewhere.") from None
    return open_prepared(config, directory=directory, given=given)


def open_prepared(config: RunConfig, *, directory: Path, given: Tokenizer | None = None) -> PreparedData:
    """Opens a complete folder after checking that it is what the configuration asks for.

    Args:
        config: the run.
        directory: a folder made by `ensure_prepared`.
        given: the tokenizer of `tokenizer.path` where it is loaded already.

    Raises:
        DataError, TokenizerError: incomplete, torn, or made from other text or with another tokenizer.
    """
    manifest = read_manifest(directory)
    check_matches(manifest, config, directory=directory, given=given or _given_tokenizer(config))
    tokenizer = Tokenizer.load(directory / TOKENIZER_NAME)
    sources = {
        name: _open_source(name, directory, manifest, tokenizer, limit=config.data.validation_tokens)
        for name in config.data.sources
    }
    return PreparedData(directory, tokenizer, manifest, sources)


def training_text(config: RunConfig, files: Mapping[str, list[Path]]) -> Iterator[str]:
    """Text a tokenizer is trained on, at most `tokenizer.training_bytes` of it.

    Taken by weight over sources and evenly over a source's files, from their beginnings. Nothing that may be held
    out for validation is seen.
    """
    weights = {name: config.data.sources[name].weight for name in files}
    total = sum(weights.values())
    for name, paths in files.items():
        budget = int(config.tokenizer.training_bytes * weights[name] / total) if total > 0 else 0
        for position, path in enumerate(paths):
            left = share = budget // (len(paths) - position)
            for document in read_documents([path], text_key=config.data.text_key) if share else ():
                if document.split == "validation" or is_held_out(document.text, config.data.holdout_fraction):
                    continue
                content = document.text.encode()
                yield document.text if len(content) <= left else content[:left].decode(errors="ignore")
                left -= min(left, len(content))
                if left == 0:
                    break
            budget -= share - left


def _given_tokenizer(config: RunConfig) -> Tokenizer | None:
    if config.tokenizer.path is None:
        return None
    tokenizer = Tokenizer.load(config.tokenizer.path)
    options = config.tokenizer
    tokenizer.require(vocab_size=options.vocab_size, bos=options.add_bos, eos=options.add_eos)
    return tokenizer


def _open_source(
    name: str, directory: Path, manifest: Mapping[str, Any], tokenizer: Tokenizer, *, limit: int
) -> PreparedSource:
    train, validation = (
        TokenStream([directory / f"{name}.{split}"] if manifest["sources"][name][split]["documents"] else [])
        for split in SPLITS
    )
    for split, stream in (("train", train), ("validation", validation)):
        expected = manifest["sources"][name][split]["tokens"]
        if stream.num_tokens != expected:
            raise DataError(
                f"{directory / name}.{split}.bin holds {stream.num_tokens} tokens, its manifest says {expected}. "
                f"Delete {directory} to have it prepared anew."
            )
    count = min(limit, validation.num_tokens)
    tokens = validation.window(0, count)
    token_bytes = tokenizer.token_bytes(tokens, document_starts=validation.document_starts(0, count))
    return PreparedSource(name, train, tokens, token_bytes)


def _prepare(config: RunConfig, *, directory: Path, text: Text | None, given: Tokenizer | None, say: Progress) -> None:
    """Makes the folder, or waits for the process that is making it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.with_name(directory.name + ".lock"), say) as is_alone:
        if (directory / MANIFEST_NAME).exists():
            return
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise DataError(
                f"{directory} exists and is not prepared data (it has no {MANIFEST_NAME}). Set data.prepared_dir to a "
                "folder that does not exist, or remove this one."
            )
        for left in list(directory.parent.iterdir()) if is_alone else ():
            if left.name.startswith(f"{directory.name}.writing-"):
                shutil.rmtree(left, ignore_errors=True)
        writing = directory.with_name(f"{directory.name}.writing-{os.getpid()}")
        writing.mkdir()
        try:
            _write(config, directory=writing, text=text, given=given, say=say)
            _publish(writing, directory)
        finally:
            shutil.rmtree(writing, ignore_errors=True)


def _write(config: RunConfig, *, directory: Path, text: Text | None, given: Tokenizer | None, say: Progress) -> None:
    files = find_text(config.data)
    text = text or describe_text(files)
    model_path = directory / TOKENIZER_NAME
    if given is not None:
        tokenizer = given
        given.save(model_path)
    else:
        say(f"training a tokenizer of {config.tokenizer.vocab_size} pieces")
        tokenizer = train_tokenizer(training_text(config, files), model_path, vocab_size=config.tokenizer.vocab_size)
    packed_bytes = sum(file["bytes"] for listed in text.values() for file in listed)
    num_processes = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES) if packed_bytes > _BYTES_WORTH_PROCESSES else 1
    counts: dict[str, dict[str, SplitCounts]] = {}
    with Encoder(tokenizer, num_processes=num_processes) as encoder:
        for name, paths in files.items():
            say(f"tokenising {name}")
            counts[name] = write_source(
                name,
                paths,
                directory=directory,
                encoder=encoder,
                text_key=config.data.text_key,
                holdout_fraction=config.data.holdout_fraction,
                add_bos=config.tokenizer.add_bos,
                add_eos=config.tokenizer.add_eos,
            )
            _check_counts(name, counts[name], config)
    manifest = build_manifest(config, text=text, tokenizer=tokenizer, counts=counts, directory=directory)
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    say(f"prepared {sum(c['train'].tokens for c in counts.values())} training tokens of {len(counts)} sources")


def _check_counts(name: str, counts: Mapping[str, SplitCounts], config: RunConfig) -> None:
    total = counts["train"].documents + counts["validation"].documents
    if total == 0:
        raise DataError(f"data.sources.{name}: every document is empty text. Remove the source or give it text.")
    if counts["validation"].documents == 0:
        enough = min(0.5, max(2 * config.data.holdout_fraction, 5 / total))
        raise DataError(
            f"data.sources.{name} has no validation text: none of its {total} documents is marked "
            f"meta.split = 'validation', and data.holdout_fraction={config.data.holdout_fraction} held out none. "
            f"Mark some, or set data.holdout_fraction to about {enough:.2g}."
        )
    if counts["train"].documents == 0 and config.data.sources[name].weight > 0:
        raise DataError(
            f"data.sources.{name} has weight {config.data.sources[name].weight} but no training text: all {total} "
            "documents are validation. Set its weight to 0, or give it training text."
        )


def _publish(writing: Path, directory: Path) -> None:
    """Renames a complete folder into place; where another process was first, its folder stays."""
    for path in (*writing.iterdir(), writing):
        _sync(path)
    try:
        os.rename(writing, directory)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not (directory / MANIFEST_NAME).exists():
            raise
    _sync(directory.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(path: Path, say: Progress) -> Iterator[bool]:
    """Holds a lock that the kernel releases when its process dies, so none is ever stale.

    Yields whether it is held: some network file systems have no locks, and there the rename alone decides.
    """
    with path.open("w") as stream:
        is_held = True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {path.with_suffix('')}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            is_held = False
        yield is_held
