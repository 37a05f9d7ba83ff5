"""Opening prepared data, and checking it: sizes and headers always, every digest and every token id on request.

Opening reads manifests and the start of the validation shards only, so that a thousand ranks may do it at once; one of
them checks first (`check_folder`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.run import RunConfig
from pretrain.data.files import digest, open_file
from pretrain.data.manifest import (
    MANIFEST_NAME,
    MEND,
    TOKENIZER_NAME,
    check_matches,
    read_manifest,
    read_source_manifest,
)
from pretrain.data.shards import SPLITS
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokens import ShardFile, TokenStream
from pretrain.errors import DataError

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """One source, ready to read.

    Attributes:
        name: its name in `data.sources`.
        train: training tokens, on disk.
        validation_tokens: int32, at most `data.validation_tokens`, from the start of the validation split; none where
            the source has no validation text.
        validation_token_bytes: int32 of the same length, UTF-8 bytes of text each of them stands for.
        chunk_rows: of `data.token_chunks`, its samples in each chunk; None of text.
        validation_starts: int64, places in `validation_tokens` at which a document begins.
    """

    name: str
    train: TokenStream
    validation_tokens: np.ndarray
    validation_token_bytes: np.ndarray
    chunk_rows: tuple[int, ...] | None = None
    validation_starts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class PreparedData:
    """All sources of a run, in the configuration's order.

    Attributes:
        directory: the folder they are in; an fsspec address is a string.
        tokenizer: the tokenizer they were made with.
        manifest: see `pretrain.data.manifest`.
        sources: by name.
    """

    directory: Path | str
    tokenizer: Tokenizer
    manifest: Mapping[str, Any]
    sources: dict[str, PreparedSource]


def open_prepared(config: RunConfig, *, directory: Path | str, given: Tokenizer | None = None) -> PreparedData:
    """Opens a complete folder after checking that it is what the configuration asks for.

    Args:
        config: the run.
        directory: a folder made by `ensure_prepared`; may be an fsspec address.
        given: the tokenizer of `tokenizer.path` where it is loaded already.

    Raises:
        DataError, TokenizerError: incomplete, torn, or made with other settings or another tokenizer.
    """
    manifest = read_manifest(directory)
    check_matches(manifest, config, directory=directory, given=given or given_tokenizer(config))
    tokenizer = _load_tokenizer(directory)
    sources = {
        name: _open_source(name, directory, tokenizer, limit=config.data.validation_tokens)
        for name in config.data.sources
    }
    return PreparedData(directory, tokenizer, manifest, sources)


def given_tokenizer(config: RunConfig) -> Tokenizer | None:
    """The tokenizer of `tokenizer.path`, after checking that it is the one the configuration speaks of.

    Raises:
        TokenizerError: unreadable, or another.
    """
    if config.tokenizer.path is None:
        return None
    tokenizer = Tokenizer.load(config.tokenizer.path)
    options = config.tokenizer
    tokenizer.require(vocab_size=options.vocab_size, bos=options.add_bos, eos=options.add_eos)
    return tokenizer


def is_prepared(directory: Path | str) -> bool:
    """Whether a folder is complete."""
    with contextlib.suppress(OSError), open_file(f"{directory}/{MANIFEST_NAME}"):
        return True
    return False


def check_folder(directory: Path | str, *, full: bool, say: Callable[[str], None] = lambda line: None) -> None:
    """Checks every shard against its manifest: sizes and index headers, or also each byte and each token id.

    Args:
        directory: a complete folder; may be an fsspec address.
        full: read everything.
        say: told of each source in turn.

    Raises:
        DataError: names the first file that is missing, torn, changed or of another kind, with the offset.
    """
    manifest = read_manifest(directory)
    checked = dict(manifest["files"])
    checked |= {f"{name}/{MANIFEST_NAME}": about["manifest"] for name, about in manifest["sources"].items()}
    for name, about in checked.items():
        _check_digest(f"{directory}/{name}", about)
    for name in manifest["sources"]:
        source = read_source_manifest(directory, name)
        for split in SPLITS:
            for about in source["shards"][split]:
                prefix = f"{directory}/{name}/{about['shard']}"
                for ending in ("bin", "idx"):
                    _check_size(f"{prefix}.{ending}", about[ending])
                # Opening compares the index's header with the file and with the manifest.
                if about["tokens"]:
                    TokenStream([_shard_file(directory, name, about)]).document(0)
                if full:
                    _check_digest(f"{prefix}.idx", about["idx"])
                    _check_tokens(f"{prefix}.bin", about, vocab_size=manifest["tokenizer"]["vocab_size"])
        say(f"{name}: {sum(len(source['shards'][split]) for split in SPLITS)} shards")


def _open_source(name: str, directory: Path | str, tokenizer: Tokenizer, *, limit: int) -> PreparedSource:
    source = read_source_manifest(directory, name)
    train, validation = (
        TokenStream([_shard_file(directory, name, about) for about in source["shards"][split]]) for split in SPLITS
    )
    count = min(limit, validation.num_tokens)
    tokens = validation.window(0, count)
    starts = validation.document_starts(0, count)
    token_bytes = tokenizer.token_bytes(tokens, document_starts=starts)
    rows = source["chunk_rows"]
    return PreparedSource(name, train, tokens, token_bytes, None if rows is None else tuple(rows), starts)


def _shard_file(directory: Path | str, source: str, about: Mapping[str, Any]) -> ShardFile:
    return ShardFile(f"{directory}/{source}/{about['shard']}", about["dtype"], about["documents"], about["tokens"])


def _load_tokenizer(directory: Path | str) -> Tokenizer:
    path = f"{directory}/{TOKENIZER_NAME}"
    try:
        with open_file(path) as stream:
            return Tokenizer(stream.read(), name=path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); the prepared data is incomplete."
        ) from None


def _check_size(path: str, about: Mapping[str, Any]) -> None:
    try:
        with open_file(path) as stream:
            size = stream.seek(0, 2)
    except OSError as error:
        found = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"
        raise DataError(f"{path} {found}; its manifest says {about['bytes']} bytes. {MEND}") from None
    if size != about["bytes"]:
        raise DataError(f"{path} ends at byte {size}; its manifest says {about['bytes']} bytes. {MEND}")


def _check_digest(path: str, about: Mapping[str, Any], found: str | None = None) -> None:
    _check_size(path, about)
    found = found or digest(path)
    if found != about["xxh3"]:
        raise DataError(f"{path} is damaged: its xxh3 is {found}, its manifest says {about['xxh3']}. {MEND}")


def _check_tokens(path: str, about: Mapping[str, Any], *, vocab_size: int) -> None:
    """One pass over a `.bin` file: its digest, and whether every id is in the vocabulary."""
    import xxhash

    state, offset, dtype = xxhash.xxh3_128(), 0, np.dtype(about["dtype"])
    with open_file(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
            ids = np.frombuffer(chunk[: len(chunk) // dtype.itemsize * dtype.itemsize], dtype=dtype)
            if ids.size and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
                at = int(np.flatnonzero((ids >= vocab_size) | (ids < 0))[0])
                raise DataError(
                    f"{path}, offset {offset + at * dtype.itemsize}: token id {int(ids[at])} is outside the vocabulary "
                    f"of {vocab_size} pieces. {MEND}"
                )
            offset += len(chunk)
    _check_digest(path, about["bin"], state.hexdigest())
