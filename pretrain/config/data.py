"""Which text, in which shares, and how much of it is held out."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    paths: list[str] = field(default_factory=list)
    """JSONL files (plain, .gz or .zst; a field `text`), globs allowed. `bundled:NAME` is shipped text."""
    weight: float = 1.0
    """Share of training samples, relative to the other sources. 0 keeps a source for validation only."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Named sources; the name is the domain of its validation loss."""
    prepared_dir: str | None = None
    """Folder of tokenised shards. Null: `<run.dir>/prepared/<fingerprint of text and tokenizer>`."""
    text_key: str = "text"
    """Field of a JSONL line that holds the document."""
    validation_tokens: int = 32_768
    """Validation tokens per source, from documents marked `meta.split = validation`, else held out by hash."""
    holdout_fraction: float = 0.005
    """Share of documents held out by hash of their text in sources that mark none."""
