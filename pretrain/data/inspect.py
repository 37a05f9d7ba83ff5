"""What a step was trained on: source, document and decoded text of each of its samples. For reading, not training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.config.load import load_yaml
from pretrain.data.prepare import PreparedData, open_prepared
from pretrain.data.run_order import read_order, sample_order
from pretrain.data.tokens import DocumentSpan
from pretrain.engine.layout import ParallelLayout
from pretrain.errors import DataError
from pretrain.locate import CONFIG_NAME


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One sample of a batch.

    Attributes:
        sample: its number among the samples the run trains on.
        rank: data-parallel rank that read it.
        microbatch: of that rank's step.
        source: name of its source.
        epoch: how many times the source was used up before.
        window: its window of the source's stream.
        start: stream position of its first token.
        documents: documents it touches, in order.
        text: decoded text.
    """

    sample: int
    rank: int
    microbatch: int
    source: str
    epoch: int
    window: int
    start: int
    documents: list[DocumentSpan]
    text: str


def show_step(run: Path, *, step: int, rank: int | None = None) -> Iterator[ShownSample]:
    """Samples of the global batch that a step trained on, in their order.

    Args:
        run: a run directory. Steps to come are shown as they will be, if nothing is changed.
        step: as in `metrics.jsonl`: 1 is the first optimizer step.
        rank: one process of the run's latest start, as launchers count them; None shows the whole batch.

    Raises:
        ConfigError: `run` is not a run directory.
        DataError: there is no such step or rank, or the prepared data is gone.
    """
    config = load_yaml(run / CONFIG_NAME)
    if not 1 <= step <= config.total_steps:
        raise DataError(f"--step {step} is not a step of {run}: they are 1 to {config.total_steps}.")
    record = read_order(run)
    layout = ParallelLayout.create(config, world_size=record.world_size)
    if rank is not None and not 0 <= rank < record.world_size:
        raise DataError(f"--rank {rank} is not a rank of {run}: they are 0 to {record.world_size - 1}.")
    wanted = None if rank is None else layout.coordinates(rank).data
    prepared = open_prepared(config, directory=record.prepared)
    order = sample_order(config, prepared, record.history)
    first = config.batch_sizes.samples(step - 1)
    count = config.batch_sizes.at_sample(first)
    found = order.locate(first, count)
    micro = config.train.micro_batch_size
    for slot in range(count):
        microbatch, place = divmod(slot, micro * layout.data)
        if wanted is not None and place // micro != wanted:
            continue
        name, start = order.sources[found.source[slot]], int(found.start[slot])
        stop = start + order.sequence_length + 1
        yield ShownSample(
            sample=first + slot,
            rank=place // micro,
            microbatch=microbatch,
            source=name,
            epoch=int(found.epoch[slot]),
            window=int(found.window[slot]),
            start=start,
            documents=_documents(prepared, name, start, stop),
            text=prepared.tokenizer.decode(_tokens(prepared, name, start, stop)),
        )


def render(shown: ShownSample, *, max_characters: int = 200) -> str:
    """One sample as a few lines of text."""
    spans = ", ".join(f"{d.shard.name} {d.index} [{d.start}, {d.stop})" for d in shown.documents[:4])
    more = f" and {len(shown.documents) - 4} more" if len(shown.documents) > 4 else ""
    text = shown.text if len(shown.text) <= max_characters else shown.text[:max_characters] + "…"
    return (
        f"sample {shown.sample}: {shown.source}, epoch {shown.epoch}, window {shown.window}, from token {shown.start}; "
        f"data-parallel rank {shown.rank}, microbatch {shown.microbatch}\n"
        f"  documents {spans}{more}\n"
        f"  {text!r}"
    )


def _tokens(prepared: PreparedData, source: str, start: int, stop: int) -> np.ndarray:
    return prepared.sources[source].train.window(start, stop - start)


def _documents(prepared: PreparedData, source: str, start: int, stop: int) -> list[DocumentSpan]:
    stream, documents = prepared.sources[source].train, []
    while start < stop:
        documents.append(stream.document(start))
        start = documents[-1].stop
    return documents
