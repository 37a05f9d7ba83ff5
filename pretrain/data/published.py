"""What was prepared beside what is published of the same data: files, tokens, chunks and their samples.

Only counts are compared, once everything is prepared and kept: files that did not arrive leave no other trace. Tokens
are all of a source's, BOS and EOS and validation included; another tokenizer counts others, so they may differ by
`data.expected_tolerance`. Numbers of files, of chunks and of their samples may not differ at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.data import DataConfig
from pretrain.data.manifest import read_manifest, read_source_manifest
from pretrain.errors import DataError

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Counts:
    """What a folder holds.

    Attributes:
        files: files that each source was read from; of token chunks, all chunks.
        documents: documents of each source, or rows.
        tokens: tokens of each source.
        chunk_samples: samples of each chunk over all sources; None where the data is text.
    """

    files: Mapping[str, int]
    documents: Mapping[str, int]
    tokens: Mapping[str, int]
    chunk_samples: Sequence[int] | None


def count(directory: Path | str) -> Counts:
    """Counts of a complete folder, from its manifests.

    Raises:
        DataError: a manifest cannot be read.
    """
    sources = {name: read_source_manifest(directory, name) for name in read_manifest(directory)["sources"]}
    rows = [source["chunk_rows"] for source in sources.values() if source["chunk_rows"] is not None]
    return Counts(
        {name: _num_files(source) for name, source in sources.items()},
        {name: source["documents"] for name, source in sources.items()},
        {name: source["tokens"] for name, source in sources.items()},
        np.sum(rows, axis=0).tolist() if rows else None,
    )


def _num_files(source: Mapping[str, Any]) -> int:
    return sum(not entry.get("start") for entry in source["inputs"])


def is_published(data: DataConfig) -> bool:
    """Whether anything is to be compared."""
    if data.expected_tolerance is None:
        return False
    own = [expected for s in data.sources.values() for expected in (s.expected_tokens, s.expected_files)]
    return any(expected is not None for expected in (*own, data.expected_chunks, data.expected_chunk_samples))


def table(counts: Counts, data: DataConfig | None = None) -> Iterator[str]:
    """Lines for people: a source each, and what is published of it where a configuration says so."""
    columns = f"{'source':<16} {'files':>13} {'documents':>15} {'tokens':>19} {'published':>19} {'ratio':>7}"
    yield columns
    sums = [0, 0]
    for name, tokens in counts.tokens.items():
        source = data.sources.get(name) if data is not None else None
        expected = source.expected_tokens if source is not None else None
        files = f"{counts.files[name]:,}"
        if source is not None and source.expected_files is not None:
            files += f" of {source.expected_files:,}"
        sums = [sums[0] + tokens, sums[1] + (expected or 0)]
        yield _line(name, files, f"{counts.documents[name]:,}", tokens, expected)
    is_complete = data is not None and all(source.expected_tokens is not None for source in data.sources.values())
    yield _line("all", "", f"{sum(counts.documents.values()):,}", sums[0], sums[1] if is_complete else None)
    if counts.chunk_samples is not None:
        least, most = min(counts.chunk_samples), max(counts.chunk_samples)
        samples = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"{len(counts.chunk_samples):,} chunks of {samples} samples"


def _line(name: str, files: str, documents: str, tokens: int, expected: int | None) -> str:
    published = f"{expected:>19,} {tokens / expected:>7.4f}" if expected else f"{'–':>19} {'–':>7}"
    return f"{name:<16} {files:>13} {documents:>15} {tokens:>19,} {published}"


def problems(counts: Counts, data: DataConfig) -> Iterator[str]:
    """Where the counts are not those that are published, each with the key that accepts it."""
    if data.expected_tolerance is None:
        return
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        found, wanted = counts.files[name], source.expected_files
        if wanted is not None and found != wanted:
            yield f"{key}: {found:,} files, {wanted:,} are published. To accept: {key}.expected_files=null"
        tokens, expected = counts.tokens[name], source.expected_tokens
        if expected is not None and abs(tokens - expected) > data.expected_tolerance * expected:
            yield (
                f"{key}: {tokens:,} tokens, {tokens / expected:.4f} of {expected:,} that are published, which is more "
                f"than data.expected_tolerance={data.expected_tolerance} off. To accept: {key}.expected_tokens=null"
            )
    yield from _chunk_problems(counts.chunk_samples, data)


def _chunk_problems(chunk_samples: Sequence[int] | None, data: DataConfig) -> Iterator[str]:
    if chunk_samples is None:
        return
    if data.expected_chunks is not None and len(chunk_samples) != data.expected_chunks:
        yield (
            f"data.token_chunks are {len(chunk_samples):,}, {data.expected_chunks:,} are published. To accept: "
            "data.expected_chunks=null"
        )
    wanted = data.expected_chunk_samples
    wrong = [number for number, found in enumerate(chunk_samples) if wanted is not None and found != wanted]
    if wrong:
        named = ", ".join(f"chunk {number} has {chunk_samples[number]:,}" for number in wrong[:_MOST_NAMED])
        more = f" and {len(wrong) - _MOST_NAMED:,} more" if len(wrong) > _MOST_NAMED else ""
        yield (
            f"data.token_chunks have {wanted:,} samples each as published, but {named}{more}. To accept: "
            "data.expected_chunk_samples=null"
        )


def require_published(data: DataConfig, *, directory: Path | str) -> None:
    """Refuses a folder that does not hold what is published.

    Args:
        data: what is expected, and how far a source may be from it.
        directory: a complete folder; it stays as it is.

    Raises:
        DataError: names every difference and how to accept it.
    """
    if not is_published(data):
        return
    found = list(problems(count(directory), data))
    if found:
        raise DataError(
            f"{directory} is complete, but does not hold what is published:\n"
            + "\n".join(f"  {problem}" for problem in found)
            + "\nMost often files did not arrive: compare them with the publisher's list, get what is missing and "
            "prepare again, with data.prepared_dir at null or at a folder that does not exist. What was prepared is "
            "kept; to train on it as it is, accept the differences, or widen data.expected_tolerance (null takes all)."
        )
