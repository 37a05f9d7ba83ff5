"""The sample of text that a tokenizer is trained on and judged by: by weight over sources, no validation text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pretrain.config.run import RunConfig
from pretrain.data.documents import Document, read_piece
from pretrain.data.files import InputFile
from pretrain.data.records import Piece, Rejected
from pretrain.data.shards import is_held_out


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
