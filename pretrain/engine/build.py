"""From `engine.name` to an engine; the only place that knows which engines there are.

What an engine cannot combine is refused here, before its package is imported and any group exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretrain.config.run import RunConfig
from pretrain.engine.base import Engine
from pretrain.errors import ConfigError
from pretrain.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch


def check_capabilities(config: RunConfig) -> list[str]:
    """Problems of this layout and precision under the chosen engine; empty when it can run."""
    parallel, problems = config.parallel, []
    if config.engine.name != "megatron":
        return [f"engine.name={config.engine.name!r} is not known. Allowed: 'megatron'."]
    for key, value in (
        ("pipeline", parallel.pipeline),
        ("virtual_pipeline", parallel.virtual_pipeline),
        ("context", parallel.context),
    ):
        if value != 1:
            problems.append(
                f"parallel.{key}={value} is not supported by engine=megatron here: its results have not been proven "
                f"equal to one process. Use parallel.{key}=1."
            )
    return problems


def build_engine(config: RunConfig, spec: ModelSpec, device: torch.device) -> Engine:
    """The engine of this run. Every rank calls it once.

    Raises:
        ConfigError: the engine is unknown or cannot combine what is asked of it.
    """
    problems = check_capabilities(config)
    if problems:
        raise ConfigError(problems)
    from pretrain.engine.megatron.engine import MegatronEngine

    return MegatronEngine(config, spec, device)
