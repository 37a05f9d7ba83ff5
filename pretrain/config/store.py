"""Tells Hydra the schema: `RunConfig` is the type of the root, so a wrong key or type cannot be composed.

The group files in `configs/` only fill fields of this schema; none of them can add one.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from pretrain.config.run import RunConfig

SCHEMA_NAME = "pretrain_schema"


def register() -> None:
    """Registers the schema under the name that `configs/pretrain.yaml` starts from. Calling it again is harmless."""
    ConfigStore.instance().store(name=SCHEMA_NAME, node=RunConfig)
