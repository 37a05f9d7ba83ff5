"""World-size and batch arithmetic, as sentences that print the whole sum and the values that would work.

Shared by `checks` (all problems of a configuration at once) and `pretrain.engine.layout` (the grid itself).
"""

from __future__ import annotations

from pretrain.batch_size import RAMP_KEY
from pretrain.config.run import ParallelSection, TrainSection


def divisors(number: int) -> list[int]:
    """All positive divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def grid_problems(parallel: ParallelSection, *, world_size: int) -> list[str]:
    """Whether tensor x pipeline x context fills the processes evenly."""
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    if model_size >= 1 and world_size % model_size == 0:
        return []
    product = f"{parallel.tensor} x {parallel.pipeline} x {parallel.context} = {model_size}"
    return [
        f"parallel.tensor x parallel.pipeline x parallel.context = {product} processes hold one model, but "
        f"{world_size} {'were' if world_size != 1 else 'was'} started; {world_size} % {model_size} = "
        f"{world_size % model_size if model_size >= 1 else 'undefined'}. Products that fit: "
        f"{_listed(divisors(world_size))}; or start a multiple of {max(model_size, 1)} processes."
    ]


def batch_problems(train: TrainSection, *, data_parallel: int) -> list[str]:
    """Whether every global batch, ramp included, is a whole number of micro batches on every data-parallel rank."""
    sizes = {f"{RAMP_KEY}[{i}].global_batch_size": stage.global_batch_size for i, stage in enumerate(train.batch_ramp)}
    sizes["train.global_batch_size"] = train.global_batch_size
    at_once = train.micro_batch_size * data_parallel
    return [
        _batch_problem(key, total, train.micro_batch_size, data_parallel)
        for key, total in sizes.items()
        if train.micro_batch_size >= 1 and total >= 1 and total % at_once
    ]


def _batch_problem(key: str, total: int, micro: int, data_parallel: int) -> str:
    at_once = micro * data_parallel
    below, above = total // at_once * at_once, (total // at_once + 1) * at_once
    near = [str(value) for value in (below, above) if value > 0]
    remedy = f"Nearest values of {key}: {' and '.join(near)}"
    if total % data_parallel == 0:
        remedy += f"; or train.micro_batch_size one of {_listed(divisors(total // data_parallel))}"
    return (
        f"{key}={total} must be a multiple of train.micro_batch_size x data-parallel size = "
        f"{micro} x {data_parallel} = {at_once}; {total} % {at_once} = {total % at_once}. {remedy}."
    )


def _listed(values: list[int], *, most: int = 12) -> str:
    shown = [str(value) for value in values[:most]]
    return ", ".join(shown) + (", …" if len(values) > most else "")
