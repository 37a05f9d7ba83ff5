"""Who reads batches in the loader's benchmark: ours, megatron-core's GPTDataset and Hugging Face datasets.

Each turns a folder that `data.write` filled into an endless iterator of microbatches of MICRO rows of 2,049 tokens, in
random order (`hf_batches`, the quickest form there is, leaves the rows as they lie), in the types and by the path that
its own users train with. Imports stay inside: no contender pays for another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

SEQUENCE_LENGTH = 2048
MICRO = 8
STEP = 64
"""Samples of a step: what is waited for at once."""
_VOCAB = 32_000
_FOREVER = 2_000_000


def ours(folder: Path) -> Iterator[int]:
    """BatchLoader with its reading thread; a batch is a whole step of `STEP / MICRO` microbatches."""
    from pretrain.batch_size import BatchSizes
    from pretrain.data.loader import BatchLoader
    from pretrain.data.order import MixtureOrder, SampleOrder, Shares
    from pretrain.data.tokens import TokenStream

    stream = TokenStream([folder / "tokens"])
    order = MixtureOrder(
        [Shares(0, {"one": Fraction(1)})],
        seed=1,
        num_tokens={"one": stream.num_tokens},
        sequence_length=SEQUENCE_LENGTH,
    )
    loader = BatchLoader(
        SampleOrder(order),
        {"one": stream},
        batch_sizes=BatchSizes.constant(STEP, sequence_length=SEQUENCE_LENGTH),
        micro_batch_size=MICRO,
        vocab_size=_VOCAB,
    )
    with loader.iterate(0) as batches:
        for batch in batches:
            assert batch.tokens_MBT.shape == (STEP // MICRO, MICRO, SEQUENCE_LENGTH + 1)
            yield STEP


def megatron(folder: Path, *, workers: int) -> Iterator[int]:
    """GPTDataset behind torch's DataLoader, as Megatron-LM's pretrain_gpt.py has them; no attention masks are made."""
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQUENCE_LENGTH,
        blend=([str(folder / "tokens")], None),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=_Vocabulary(),
    )
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [_FOREVER, 0, 0], lambda: True, config).build()[0]
    batches = torch.utils.data.BatchSampler(range(len(dataset)), MICRO, drop_last=True)  # its index is shuffled
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0
    )
    for batch in loader:
        assert batch["tokens"].shape == batch["labels"].shape == (MICRO, SEQUENCE_LENGTH)
        yield MICRO


class _Vocabulary:
    """What megatron-core asks of a tokenizer."""

    unique_identifiers = {"class": "none"}
    eod = 0
    vocab_size = _VOCAB


def hf_map(folder: Path, *, workers: int, form: str) -> Iterator[int]:
    """A mapped Arrow table behind a shuffling DataLoader."""
    import numpy as np
    import torch
    from datasets import load_from_disk

    dataset = load_from_disk(str(folder / "rows")).with_format(form)

    def stack(rows: list[dict[str, Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([row["input_ids"] for row in rows]))

    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=MICRO,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=stack if form == "numpy" else None,
    )
    while True:
        for batch in loader:
            assert (batch if form == "numpy" else batch["input_ids"]).shape == (MICRO, SEQUENCE_LENGTH + 1)
            yield MICRO


def hf_iterable(folder: Path, *, workers: int, form: str) -> Iterator[int]:
    """The table as a stream, shuffled by a buffer of 1,000 rows, behind a DataLoader."""
    import numpy as np
    import torch
    from datasets import load_from_disk

    stream = load_from_disk(str(folder / "rows")).to_iterable_dataset(num_shards=8)
    stream = stream.shuffle(seed=1, buffer_size=1000).with_format(form)

    def stack(rows: list[dict[str, Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([row["input_ids"] for row in rows]))

    loader = torch.utils.data.DataLoader(
        stream,
        batch_size=MICRO,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=stack if form == "numpy" else None,
    )
    while True:
        for batch in loader:
            assert (batch if form == "numpy" else batch["input_ids"]).shape == (MICRO, SEQUENCE_LENGTH + 1)
            yield MICRO


def hf_batches(folder: Path) -> Iterator[int]:
    """Slices of the stream as numpy arrays, without a DataLoader and without shuffling."""
    from datasets import load_from_disk

    stream = load_from_disk(str(folder / "rows")).to_iterable_dataset(num_shards=8).with_format("numpy")
    while True:
        for batch in stream.iter(batch_size=MICRO, drop_last_batch=True):
            assert batch["input_ids"].shape == (MICRO, SEQUENCE_LENGTH + 1)
            yield MICRO


CONTENDERS: dict[str, Callable[[Path], Iterator[int]]] = {
    "ours": ours,
    **{f"megatron_workers_{n}": lambda folder, n=n: megatron(folder, workers=n) for n in (0, 2)},
    **{
        f"hf_map_{form}_workers_{n}": lambda folder, n=n, form=form: hf_map(folder, workers=n, form=form)
        for form in ("numpy", "torch")
        for n in (0, 2)
    },
    **{
        f"hf_iterable_{form}_workers_{n}": lambda folder, n=n, form=form: hf_iterable(folder, workers=n, form=form)
        for form, n in (("numpy", 0), ("numpy", 2), ("torch", 2))
    },
    "hf_batches_in_file_order": hf_batches,
}
"""By name: a function of the folder that yields how many samples each `next` brought."""
