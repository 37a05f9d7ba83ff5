"""Which text, in which shares and order, and how much of it is held out."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrain.units import Tokens

ORDERS = ("mixture", "sequential", "chunked")
VERIFY = ("header", "full")
_REJECTED_BYTES_SHARE = 0.01
"""Ten times the usual share of lines: what is rejected is often longer than what is not."""


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    paths: list[str] = field(default_factory=list)
    """JSONL (plain, .gz, .zst), Parquet, .txt, or a folder that `datasets` saved; globs and fsspec addresses
    (`s3://…`, `msc://…`) allowed. `bundled:NAME` is shipped text."""
    weight: float = 1.0
    """Share of training samples, relative to the other sources. 0 keeps a source for validation only."""
    tokens: Tokens | None = None
    """Tokens to train on over the whole run, instead of a weight. All trained sources are given this way, or none."""
    epochs: float | None = None
    """Passes over the source's own tokens in the whole run, instead of a weight; others may be given in `tokens`."""
    text_key: str | None = None
    """Field or column that holds this source's documents. Null: `data.text_key`."""
    aliases: list[str] = field(default_factory=list)
    """Further names that rows of `data.token_chunks` have for this source."""
    expected_tokens: Tokens | None = None
    """Published tokens, to compare with all that were prepared (validation included). Null: nothing is compared."""
    expected_files: int | None = None
    """Published number of files, which must be the same. Null: nothing is compared."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Named sources; the name is the domain of its validation loss."""
    token_chunks: list[str] = field(default_factory=list)
    """Samples that are tokenised already, a file a chunk, as LLM360/AmberDatasets: JSONL with `token_ids`
    (train.sequence_length + 1 of them) and `source`, one of data.sources. Replaces `paths`; needs order=chunked."""
    order: str = "mixture"
    """`mixture`: sources by share, shuffled; `sequential`: as the text comes, source after source (OpenLLaMA);
    `chunked`: num_chunks parts that each hold the global mix, one after the other, shuffled within (Amber)."""
    expected_chunks: int | None = None
    """Chunks that token_chunks must have, exactly. Null: any number."""
    expected_chunk_samples: int | None = None
    """Samples that each of token_chunks must have, exactly. Null: any number."""
    expected_tolerance: float | None = 0.02
    """How far a source may be from its `expected_tokens`, as a share of them. Another tokenizer needs more. Null:
    nothing that is expected is compared, files and chunks neither; for samples of published data."""
    num_chunks: int = 360
    """Chunks of order=chunked; sample i of a source goes to chunk i mod num_chunks. token_chunks: one a file."""
    document_mask: bool = False
    """Tokens see their own document only. Off, a window sees all that was concatenated into it (Amber, OpenLLaMA)."""
    skip: list[str] = field(default_factory=list)
    """Ranges of the sample order that are left out, `first:stop` (stop is not part of it), rising. What follows moves
    up."""
    accept_changes: bool = False
    """Lets a run that is resumed go on with other shares (`weight`, `tokens`, `epochs`) or other `skip` ranges."""
    prepared_dir: str | None = None
    """Folder of tokenised shards; may be an fsspec address. Null: `<run.dir>/prepared/<fingerprint>`."""
    verify: str = "header"
    """What is checked when shards are opened: `header` (sizes and index headers) or `full` (every digest)."""
    read_ahead_batches: int = 2
    """Batches read before they are needed. Object stores may want more."""
    text_key: str = "text"
    """Field of a JSONL line, or column of a table, that holds the document; a source may have its own."""
    validation_tokens: Tokens = 32_768
    """Validation tokens per source, from documents marked `meta.split = validation`, else held out by hash."""
    holdout_fraction: float = 0.005
    """Share of documents held out by hash of their text in sources that mark none. 0: those have no validation."""
    shard_bytes: int = 268_435_456
    """Bytes of input, as stored, that make one shard: the unit of parallel work. Tokens do not depend on it."""
    max_line_bytes: int = 33_554_432
    """Longer lines or documents are rejected unread, so that memory stays bounded."""
    max_rejected_share: float = 0.001
    """Share of a source's lines that may be unusable before preparation stops. Empty documents are not counted in."""
    max_rejected_bytes_share: float | None = None
    """Share of a source's bytes that may be in unusable lines before preparation stops: one long line can hold more
    than a million others. Of its unpacked files; of a table, of its text. Null: max_rejected_share, at least 0.01."""
    max_damaged_files: int = 0
    """Files of a source that may be unreadable (torn, corrupt compression, not UTF-8) before preparation stops."""

    @property
    def rejected_bytes_share(self) -> float:
        """The share of a source's bytes that may be unusable."""
        own = self.max_rejected_bytes_share
        return own if own is not None else max(self.max_rejected_share, _REJECTED_BYTES_SHARE)

    def text_key_of(self, source: str) -> str:
        """Field or column that holds a source's documents."""
        own = self.sources[source].text_key if source in self.sources else None
        return own if own is not None else self.text_key
