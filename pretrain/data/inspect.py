"""What a step was trained on: source, document and decoded text of each of its samples. For reading, not training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.data.loader import sample_order
from pretrain.data.prepare import PreparedData
from pretrain.data.tokens import DocumentSpan
from pretrain.errors import DataError


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One sample of a batch.

    Attributes:
        sample: its index in the run's order.
        source: name of its source.
        epoch: how many times the source was used up before.
        window: its window of the source's stream.
        start: stream position of its first token.
        documents: documents it touches, in order.
        text: decoded text.
    """

    sample: int
    source: str
    epoch: int
    window: int
    start: int
    documents: list[DocumentSpan]
    text: str


def show_step(config: RunConfig, prepared: PreparedData, *, step: int) -> Iterator[ShownSample]:
    """Samples of the global batch that a step trained on.

    Args:
        config: the run.
        prepared: its data.
        step: as in `metrics.jsonl`: 1 is the first optimizer step.

    Raises:
        DataError: there is no such step.
    """
    if step < 1:
        raise DataError(f"--step {step} is not a step; the first one is 1.")
    order = sample_order(config, prepared)
    length, first = order.sequence_length, config.batch_sizes.samples(step - 1)
    count = config.batch_sizes.at_sample(first)
    found = order.locate(first, count)
    for i in range(count):
        name, window = order.sources[found.source[i]], int(found.window[i])
        stream, start = prepared.sources[name].train, window * length
        documents = []
        position = start
        while position < start + length + 1:
            documents.append(stream.document(position))
            position = documents[-1].stop
        text = prepared.tokenizer.decode(stream.window(start, length + 1))
        yield ShownSample(first + i, name, int(found.epoch[i]), window, start, documents, text)


def render(shown: ShownSample, *, max_characters: int = 200) -> str:
    """One sample as a few lines of text."""
    spans = ", ".join(f"{d.index} [{d.start}, {d.stop})" for d in shown.documents[:4])
    more = f" and {len(shown.documents) - 4} more" if len(shown.documents) > 4 else ""
    text = shown.text if len(shown.text) <= max_characters else shown.text[:max_characters] + "…"
    return (
        f"sample {shown.sample}: {shown.source}, epoch {shown.epoch}, window {shown.window}, from token {shown.start}\n"
        f"  documents {spans}{more}\n"
        f"  {text!r}"
    )
