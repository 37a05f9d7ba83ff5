"""The order of a run: from its configuration, and from what of it has changed on the way.

Shares of sources and ranges to leave out may change when a run is resumed, if the user says so. What was in force
before is part of the run's state, so that the order of what was trained on stays what it was, and each source goes
on where it stood. `ORDER_NAME` in the run directory holds the same, for whoever asks later what a step has seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pretrain.config.data import DataConfig, SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data.chunked import ChunkedOrder
from pretrain.data.order import MixtureOrder, Order, SampleOrder, SequentialOrder, Shares
from pretrain.data.prepare import PreparedData
from pretrain.durable import replace_file
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.skips import Skips

ORDER_NAME = "order.json"
_REMEDY = "Restore them, or accept the change with data.accept_changes=true."


@dataclass(frozen=True, slots=True)
class OrderHistory:
    """What a run's order is, and was.

    Attributes:
        shares: in the order in which they came into force; empty for orders without shares.
        given: how the last of them stood in the configuration, per source: `weight 0.3`, `tokens 30000000000`.
        skips: ranges that are left out.
    """

    shares: tuple[Shares, ...]
    given: Mapping[str, str]
    skips: Skips

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "shares": [
                {
                    "first": one.first,
                    "weights": {name: str(weight) for name, weight in one.weights.items()},
                    "drawn": dict(one.drawn),
                }
                for one in self.shares
            ],
            "given": dict(self.given),
            "skip": self.skips.texts(),
        }

    @classmethod
    def from_state_dict(cls, values: Mapping[str, Any]) -> OrderHistory:
        """The inverse of `state_dict`.

        Raises:
            CheckpointError: the values are not those of an order.
        """
        try:
            shares = tuple(
                Shares(
                    int(one["first"]),
                    {str(name): Fraction(weight) for name, weight in one["weights"].items()},
                    {str(name): int(count) for name, count in one["drawn"].items()},
                )
                for one in values["shares"]
            )
            return cls(shares, dict(values["given"]), Skips.parse(values["skip"]))
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"The order of samples cannot be read from the run's state: {error!r}.") from None


def begin(config: RunConfig, prepared: PreparedData) -> OrderHistory:
    """The history of a run that begins.

    Raises:
        ConfigError: quotas that do not fill the run, or ranges to leave out that are none.
    """
    skips = Skips.parse(config.data.skip)
    if config.data.order != "mixture":
        return OrderHistory((), {}, skips)
    shares = Shares(0, _weights(config, prepared, drawn={}))
    return OrderHistory((shares,), given_shares(config.data), skips)


def go_on(
    history: OrderHistory, config: RunConfig, prepared: PreparedData, *, consumed: int
) -> tuple[OrderHistory, list[str]]:
    """The history of a run that is resumed, with what the configuration asks for from now on.

    Args:
        history: up to the checkpoint it is resumed from.
        config: the configuration now.
        prepared: the run's data.
        consumed: samples trained on up to the checkpoint.

    Returns:
        The history, and what has changed, a sentence each.

    Raises:
        ConfigError: something changed without data.accept_changes, or would change what was trained on already.
    """
    changes: list[str] = []
    skips = Skips.parse(config.data.skip)
    position = history.skips.index(consumed - 1) + 1 if consumed else 0
    if skips != history.skips:
        if skips.before(position) != history.skips.before(position):
            raise ConfigError(
                f"data.skip={skips.texts()} differs from {history.skips.texts()} before sample {position}, which was "
                "trained on already. Change later ranges only, or resume from a checkpoint before them."
            )
        changes.append(f"data.skip: {history.skips.texts()}, now {skips.texts()}")
    shares, given = history.shares, given_shares(config.data)
    if shares:
        _weights(config, prepared, drawn={})  # quotas must fill the run, whose length may be another now
    if shares and given != history.given:
        changes += [
            f"data.sources.{name}: {history.given.get(name, 'absent')}, now {given.get(name, 'absent')}"
            for name in dict.fromkeys([*history.given, *given])
            if history.given.get(name) != given.get(name)
        ]
        index = history.skips.index(consumed)
        drawn = _mixture_order(history.shares, config, prepared).drawn_before(index)
        kept = [one for one in shares if one.first < index]
        shares = (*kept, Shares(index if kept else 0, _weights(config, prepared, drawn=drawn), drawn))
    if changes and not config.data.accept_changes:
        listed = "\n      ".join(changes)
        raise ConfigError(f"The run was begun with other data settings:\n      {listed}\n    {_REMEDY}")
    return OrderHistory(shares, given if shares else {}, skips), changes


def sample_order(config: RunConfig, prepared: PreparedData, history: OrderHistory | None = None) -> SampleOrder:
    """The order of samples of a run.

    Args:
        config: the run.
        prepared: its data.
        history: what has been in force; null for a run that begins.

    Raises:
        ConfigError: the configuration makes no order.
        DataError: a source is too short.
    """
    history = history or begin(config, prepared)
    return SampleOrder(_order(history, config, prepared), history.skips)


def given_shares(data: DataConfig) -> dict[str, str]:
    """How the shares of the sources that are trained on stand in the configuration."""
    given = {}
    for name, source in sorted(data.sources.items()):
        if source.tokens is not None:
            given[name] = f"tokens {source.tokens}"
        elif source.epochs is not None:
            given[name] = f"epochs {source.epochs}"
        elif source.weight:
            given[name] = f"weight {source.weight}"
    return given


def chunk_ends(order: SampleOrder, *, total_steps: int) -> list[int]:
    """Steps after which a chunk of data.order=chunked is complete; none for other orders.

    Samples that are skipped let what follows move up: a chunk may then end within a step.
    """
    chunked = order.order
    if not isinstance(chunked, ChunkedOrder):
        return []
    batch, skips = chunked.global_batch_size, order.skips
    ends = chunked.chunk_ends(total_steps + -(-sum(stop - first for first, stop in skips.ranges) // batch))
    trained = [end * batch - sum(stop - first for first, stop in skips.before(end * batch)) for end in ends]
    return sorted({step for count in trained if 0 < (step := -(-count // batch)) <= total_steps})


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What `ORDER_NAME` of a run directory holds.

    Attributes:
        history: the order.
        prepared: folder of the prepared data.
        world_size: processes of the run's latest start.
        chunk_ends: steps that complete a chunk.
    """

    history: OrderHistory
    prepared: str
    world_size: int
    chunk_ends: list[int]


def write_order(directory: Path, record: RunOrder) -> None:
    """Writes `ORDER_NAME` of a run directory, durably."""
    values = {
        **record.history.state_dict(),
        "prepared": record.prepared,
        "world_size": record.world_size,
        "chunk_ends": record.chunk_ends,
    }
    replace_file(directory / ORDER_NAME, json.dumps(values, indent=1) + "\n")


def read_order(directory: Path) -> RunOrder:
    """Reads `ORDER_NAME` of a run directory.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = directory / ORDER_NAME
    size = 0
    try:
        text = path.read_text(encoding="utf-8")
        size = len(text.encode())
        values = json.loads(text)
        history, ends = OrderHistory.from_state_dict(values), [int(step) for step in values["chunk_ends"]]
        return RunOrder(history, str(values["prepared"]), int(values["world_size"]), ends)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give the directory of a run that was started.") from None
    except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
        raise DataError(
            f"{path} ({size} bytes) cannot be read: {error}. The machine or its disk probably failed while it was "
            "written. Start the run again with data.prepared_dir set to the folder of prepared data that it was begun "
            "with, as a rule below run.dir/prepared: the file is then written anew."
        ) from None


def _order(history: OrderHistory, config: RunConfig, prepared: PreparedData) -> Order:
    data, length = config.data, config.train.sequence_length
    if data.order == "mixture":
        return _mixture_order(history.shares, config, prepared)
    streams = {name: prepared.sources[name].train for name, source in data.sources.items() if source.weight}
    tokens = {name: stream.num_tokens for name, stream in streams.items()}
    if data.order == "sequential":
        return SequentialOrder(tokens, sequence_length=length)
    seed, batch = config.run.seed, config.train.global_batch_size
    if data.token_chunks:
        rows = {name: prepared.sources[name].chunk_rows or () for name in streams}
        return ChunkedOrder.from_rows(rows, seed=seed, sequence_length=length, global_batch_size=batch)
    return ChunkedOrder.from_streams(
        tokens, num_chunks=data.num_chunks, seed=seed, sequence_length=length, global_batch_size=batch
    )


def _mixture_order(shares: tuple[Shares, ...], config: RunConfig, prepared: PreparedData) -> MixtureOrder:
    return MixtureOrder(
        shares,
        seed=config.run.seed,
        num_tokens={name: source.train.num_tokens for name, source in prepared.sources.items()},
        sequence_length=config.train.sequence_length,
    )


def _weights(config: RunConfig, prepared: PreparedData, *, drawn: Mapping[str, int]) -> dict[str, Fraction]:
    """Relative shares from now on: the weights as written, or what is left of each source's quota."""
    sources = config.data.sources
    if all(source.tokens is None and source.epochs is None for source in sources.values()):
        return {name: Fraction(repr(source.weight)) for name, source in sources.items()}
    quotas = {name: _quota_samples(name, source, config, prepared) for name, source in sources.items()}
    total, wanted = sum(quotas.values()), config.batch_sizes.samples(config.total_steps)
    if wanted - total >= config.batch_sizes.at_sample(max(0, wanted - 1)):
        raise ConfigError(
            f"data.sources.*.tokens and epochs add up to {total:,} samples of train.sequence_length="
            f"{config.train.sequence_length}, but the run takes {wanted:,} ({config.total_steps:,} steps): there is "
            "nothing left for the last ones. Raise them, shorten the run, or give weights instead."
        )
    spent = [name for name, count in quotas.items() if drawn.get(name, 0) > count]
    if spent:
        raise ConfigError(
            [
                f"data.sources.{name}: {quotas[name]:,} samples are asked for over the run, but {drawn[name]:,} were "
                "trained on already. Give at least these."
                for name in spent
            ]
        )
    return {name: Fraction(count - drawn.get(name, 0)) for name, count in quotas.items()}


def _quota_samples(name: str, source: SourceConfig, config: RunConfig, prepared: PreparedData) -> int:
    length = config.train.sequence_length
    if source.tokens is not None:
        return -(-source.tokens // length)
    if source.epochs is not None:
        windows = (prepared.sources[name].train.num_tokens - 1) // length
        return round(Fraction(repr(source.epochs)) * windows)
    return 0
