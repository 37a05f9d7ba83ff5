"""Which sources a run reads too often: known from the order before the first step, whatever has changed on the way.

Muennighoff et al. (2023, "Scaling Data-Constrained Language Models", arXiv 2305.16264) find that text read up to 4
times is nearly as good as new text, and that with more the gain of further training falls to nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.data.order import SampleOrder

MOST_EPOCHS = 4.0
"""Passes over a source that are nearly as good as new text; see the module."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A source that a run reads more than `MOST_EPOCHS` times.

    Attributes:
        epochs: passes over it in the whole run.
        tokens: tokens of it that the run trains on.
        epoch_tokens: tokens of one pass.
    """

    epochs: float
    tokens: int
    epoch_tokens: int


def repeated_sources(order: SampleOrder, *, num_samples: int) -> dict[str, Repeated]:
    """Sources that are read too often, the most often read first.

    Args:
        order: of the run, with all shares that have been in force.
        num_samples: samples that the run trains on from its first step to its last.
    """
    found = {}
    for (name, epoch_tokens), count in zip(order.epoch_tokens.items(), order.counts(num_samples), strict=True):
        tokens = round(count * order.sequence_length)
        if tokens > MOST_EPOCHS * epoch_tokens:
            found[name] = Repeated(tokens / epoch_tokens, tokens, epoch_tokens)
    return dict(sorted(found.items(), key=lambda item: -item[1].epochs))


def planned_epochs(config: RunConfig) -> dict[str, float]:
    """Passes over each source, as far as the configuration says so without text: `epochs`, or `expected_tokens`."""
    trained = {
        name: source
        for name, source in config.data.sources.items()
        if source.weight or source.tokens is not None or source.epochs is not None
    }
    sizes = {name: source.expected_tokens for name, source in trained.items() if source.expected_tokens is not None}
    if config.data.order != "mixture":
        return dict.fromkeys(trained, config.total_tokens / sum(sizes.values())) if len(sizes) == len(trained) else {}
    weights = sum(source.weight for source in trained.values())
    epochs = {}
    for name, source in trained.items():
        if source.epochs is not None:
            epochs[name] = source.epochs
        elif name in sizes:
            tokens = source.tokens if source.tokens is not None else config.total_tokens * source.weight / weights
            epochs[name] = tokens / sizes[name]
    return epochs


def warning(repeated: dict[str, Repeated]) -> str:
    """What to tell the user of them; whole sentences."""
    listed = ", ".join(
        f"{name} {one.epochs:.1f} times ({one.tokens:,} tokens are trained on, it has {one.epoch_tokens:,})"
        for name, one in repeated.items()
    )
    return (
        f"The run reads {listed}. Text read up to {MOST_EPOCHS:g} times is nearly as good as new text; with more, "
        "further training gains less and less (arXiv 2305.16264). Give these sources more text or a smaller share, or "
        "shorten the run, unless you mean it."
    )


def fields(repeated: dict[str, Repeated]) -> dict[str, Any]:
    """The same as plain JSON values, for an event."""
    return {"sources": {name: asdict(one) for name, one in repeated.items()}}
