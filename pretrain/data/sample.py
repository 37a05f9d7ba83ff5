"""The sample of text that a tokenizer is trained on and judged by: by weight over sources, no validation text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pretrain.config.run import RunConfig
from pretrain.data.documents import Document, read_piece
from pretrain.data.files import InputFile
from pretrain.data.limits import damage
from pretrain.data.records import Piece, Rejected
from pretrain.data.shards import is_held_out
from pretrain.errors import DataError


class Unread:
    """What gave no document while a sample was read; preparation, which reads everything, has limits for it.

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
            DataError: too many files cannot be read.
        """
        if item.is_empty:
            return
        if item.is_damage:
            self._damaged.add(item.file)
        if len(self._damaged) > self._most_damaged:
            what, limit, remedy = damage(len(self._damaged), limit=self._most_damaged)
            place = f"line {item.line}" if item.line else "its beginning"
            raise DataError(f"{what}, more than {limit}.\n  {item.file}, {place}: {item.detail}\n{remedy}")
        self._num_lines += 1
        self._num_bytes += item.num_bytes
        if self._largest is None or item.num_bytes > self._largest.num_bytes:
            self._largest = item

    def sentence(self) -> str:
        """How much it was, and which was the largest; empty where everything gave a document."""
        if self._largest is None:
            return ""
        return (
            f"{self._num_lines:,} lines of the sample gave no document ({self._num_bytes:,} bytes). The largest is "
            f"{self._largest.file}, line {self._largest.line}: {self._largest.detail}"
        )


def training_text(
    config: RunConfig,
    files: Mapping[str, Sequence[InputFile]],
    *,
    num_bytes: int | None = None,
    on_reject: Callable[[Rejected], None] = lambda item: None,
) -> Iterator[str]:
    """Text a tokenizer is trained on.

    Taken by weight over sources and evenly over a source's files, from their beginnings. Nothing that may be held
    out for validation is seen. Unusable lines are passed over: preparation, which reads everything, names them.

    Args:
        config: the run.
        files: files of each source.
        num_bytes: at most so much; None is `tokenizer.training_bytes`.
        on_reject: is given what has no document; may raise to stop.
    """
    weights = {name: config.data.sources[name].weight for name in files}
    total = sum(weights.values())
    for name, listed in files.items():
        wanted = config.tokenizer.training_bytes if num_bytes is None else num_bytes
        budget = int(wanted * weights[name] / total) if total > 0 else 0
        for position, file in enumerate(listed):
            left = share = budget // (len(listed) - position)
            for text in _training_documents(config, name, file, on_reject) if share else ():
                content = text.encode()
                yield text if len(content) <= left else content[:left].decode(errors="ignore")
                left -= min(left, len(content))
                if left == 0:
                    break
            budget -= share - left


def _training_documents(
    config: RunConfig, source: str, file: InputFile, on_reject: Callable[[Rejected], None]
) -> Iterator[str]:
    data = config.data
    for item in read_piece(Piece(file), text_key=data.text_key_of(source), max_line_bytes=data.max_line_bytes):
        if isinstance(item, Rejected):
            on_reject(item)
        if not isinstance(item, Document) or item.split == "validation":
            continue
        if not is_held_out(item.text, data.holdout_fraction):
            yield item.text
