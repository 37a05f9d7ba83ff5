"""Rules on `data`: sources, shares and quotas, orders and what each of them allows."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pretrain.config.nearest import did_you_mean
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.skips import Skips


def data_problems(config: RunConfig) -> Iterator[str]:
    """Problems of `data`, one sentence or two each."""
    data = config.data
    if not data.sources:
        yield (
            "data.sources is empty: there is nothing to train on. Name a source, as "
            "'data.sources.mine.paths=[/data/*.jsonl.zst]', or use shipped text with data=bundled."
        )
        return
    yield from _token_chunk_problems(config) if data.token_chunks else _path_problems(config)
    yield from _share_problems(config)
    yield from _order_problems(config)
    yield from _expected_problems(config)
    try:
        Skips.parse(data.skip)
    except ConfigError as error:
        yield from error.problems


def _path_problems(config: RunConfig) -> Iterator[str]:
    sources = config.data.sources
    complete = [name for name, source in sources.items() if source.paths]
    for name, source in sources.items():
        if not source.paths:
            hint = did_you_mean(name, complete) or f" Sources with paths: {', '.join(complete) or 'none'}."
            yield f"data.sources.{name} has no paths.{hint} Set data.sources.{name}.paths=[…] or remove it."


def _token_chunk_problems(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.order != "chunked":
        yield (
            f"data.token_chunks lists chunks, but data.order={data.order!r} knows none. Set data.order=chunked, or "
            "give text with data.sources.NAME.paths."
        )
    for name, source in data.sources.items():
        if source.paths:
            yield (
                f"data.sources.{name}.paths={source.paths} beside data.token_chunks: which rows are whose stands in "
                "the chunks. Leave out one of the two."
            )
    if data.document_mask:
        yield (
            "data.document_mask=true needs to know where documents begin, which rows of data.token_chunks do not say: "
            "each is a window cut from documents laid end to end. Set it to false (as Amber trained), or give text."
        )


def _share_problems(config: RunConfig) -> Iterator[str]:
    sources, order = config.data.sources, config.data.order
    for name, source in sources.items():
        key = f"data.sources.{name}"
        if not 0 <= source.weight < math.inf:
            yield f"{key}.weight={source.weight} must be 0 or more, and finite."
        if source.tokens is not None and source.epochs is not None:
            yield f"{key} has tokens={source.tokens} and epochs={source.epochs}. Give one of them."
        if source.tokens is not None and source.tokens < 1:
            yield f"{key}.tokens={source.tokens} must be at least 1; weight=0 keeps a source for validation only."
        if source.epochs is not None and not 0 < source.epochs < math.inf:
            yield f"{key}.epochs={source.epochs} must be above 0, and finite; weight=0 is for validation only."
    with_quota = [name for name, source in sources.items() if source.tokens is not None or source.epochs is not None]
    without = [name for name, source in sources.items() if name not in with_quota and source.weight > 0]
    if not with_quota and not without:
        yield (
            f"Every source has weight 0 ({', '.join(sources)}): there is nothing to train on. Give one a positive "
            f"data.sources.NAME.weight; 0 keeps a source for validation only."
        )
    if with_quota and without:
        yield (
            f"data.sources: {', '.join(with_quota)} have tokens or epochs, {', '.join(without)} a weight. Give all "
            "sources that are trained on the one or the other; weight=0 keeps a source for validation only."
        )
    if order == "mixture":
        return
    weighted = [name for name, source in sources.items() if source.weight not in (0, 1)]
    if with_quota or weighted:
        yield (
            f"data.order={order} takes every source whole, so the shares of {', '.join(with_quota + weighted)} would "
            "have no effect. Leave weight at 1 (0: validation only), tokens and epochs at null, or use order=mixture."
        )


def _order_problems(config: RunConfig) -> Iterator[str]:
    if config.data.order == "chunked" and config.train.batch_ramp:
        yield (
            "data.order=chunked ends every chunk with a whole batch, which train.batch_ramp would cut anew. Leave one "
            "of the two."
        )


def _expected_problems(config: RunConfig) -> Iterator[str]:
    """What is published of the data, and names of sources in rows."""
    data = config.data
    counts = {f"data.{key}": getattr(data, key) for key in ("expected_chunks", "expected_chunk_samples")}
    for key, value in counts.items():
        if value is not None and not data.token_chunks:
            yield f"{key}={value} is compared with data.token_chunks, which lists none. Set it to null."
    owners: dict[str, str] = {name: name for name in data.sources}
    for name, source in data.sources.items():
        counts |= {f"data.sources.{name}.{key}": getattr(source, key) for key in ("expected_tokens", "expected_files")}
        for alias in source.aliases if data.token_chunks else ():
            if owners.setdefault(alias, name) != name:
                yield f"data.sources.{name}.aliases has {alias!r}, which is {owners[alias]}'s. Give it to one of them."
        if source.aliases and not data.token_chunks:
            yield (
                f"data.sources.{name}.aliases={source.aliases} are names in rows of data.token_chunks, which lists "
                "none. Leave them out."
            )
    for key, value in counts.items():
        if value is not None and value < 1:
            yield f"{key}={value} must be at least 1; null compares nothing."
    if data.expected_tolerance is not None and not 0 <= data.expected_tolerance < 1:
        yield (
            f"data.expected_tolerance={data.expected_tolerance} must be at least 0 and below 1 (0.02 is two percent), "
            "or null, which compares nothing."
        )
