"""What the GPU benchmarks measure: the models, and one configuration of one contender. Imports nothing heavy.

A task is one subprocess. It travels as JSON, so that a contender may run under another Python than this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pretrain.config.model import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A LLaMA and the size of its optimizer step.

    Attributes:
        num_query_groups: key/value heads.
        sequence_length: tokens.
        sequences_per_step: of one optimizer step, whatever the micro-batch size.
        micro_batch_sizes: sequences of one forward and backward that are tried.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    vocab_size: int
    sequence_length: int
    sequences_per_step: int
    micro_batch_sizes: tuple[int, ...]

    @property
    def tokens_per_step(self) -> int:
        return self.sequences_per_step * self.sequence_length

    def model(self) -> ModelConfig:
        """The same sizes as our configuration names them."""
        return ModelConfig(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            ffn_hidden_size=self.ffn_hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_query_groups=self.num_query_groups,
        )


# Steps are short, so that a configuration takes a minute: with a step of half a million tokens the update, which is
# about a hundredth of these steps at 7B, would cost less. Each has microbatches enough to sum gradients over.
SHAPES = {
    "1.3b": Shape(
        num_layers=24, hidden_size=2048, ffn_hidden_size=5504, num_attention_heads=16, num_query_groups=16,
        vocab_size=32_000, sequence_length=2048, sequences_per_step=64, micro_batch_sizes=(8, 16, 32),
    ),
    "7b": Shape(
        num_layers=32, hidden_size=4096, ffn_hidden_size=11_008, num_attention_heads=32, num_query_groups=32,
        vocab_size=32_000, sequence_length=2048, sequences_per_step=16, micro_batch_sizes=(1, 2, 4),
    ),
    "8b": Shape(
        num_layers=32, hidden_size=4096, ffn_hidden_size=14_336, num_attention_heads=32, num_query_groups=8,
        vocab_size=128_256, sequence_length=8192, sequences_per_step=4, micro_batch_sizes=(1,),
    ),
}  # fmt: skip
QUICK = {
    name: Shape(
        num_layers=2, hidden_size=64, ffn_hidden_size=192, num_attention_heads=4, num_query_groups=groups,
        vocab_size=512, sequence_length=64, sequences_per_step=4, micro_batch_sizes=sizes,
    )
    for name, groups, sizes in (("1.3b", 4, (1, 2)), ("7b", 4, (2,)), ("8b", 2, (2,)))
}  # fmt: skip
"""The same names with sizes for a CPU: to see that everything runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One configuration of one contender.

    Attributes:
        contender: module of this package.
        model: name of the shape.
        shape: sizes.
        micro_batch_size: sequences of one forward and backward.
        warmup_steps: untimed steps; kernels are compiled in them.
        timed_steps: steps that are timed one by one; one more is profiled.
        options: of ours, overrides as on the command line; of a peer, its own switches.
    """

    contender: str
    model: str
    shape: Shape
    micro_batch_size: int
    warmup_steps: int = 3
    timed_steps: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_microbatches(self) -> int:
        return self.shape.sequences_per_step // self.micro_batch_size

    @property
    def total_steps(self) -> int:
        return self.warmup_steps + self.timed_steps + 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        """Inverse of `to_json`."""
        shape = dict(values["shape"])
        shape["micro_batch_sizes"] = tuple(shape["micro_batch_sizes"])
        return cls(**{**values, "shape": Shape(**shape)})
