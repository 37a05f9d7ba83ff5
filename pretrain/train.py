"""One run from its configuration to its last checkpoint: the composition root, and the only importer of probes.

config → run directory → data → model and engine → resume → hooks → fit. Every process runs the same lines;
what only one must do goes through `Job.once`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pretrain.checkpoint.calendar import Calendar
from pretrain.checkpoint.huggingface import export_checkpoint
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reader import CheckpointReader, newest_valid
from pretrain.checkpoint.retain import retain
from pretrain.config.checks import check
from pretrain.config.load import config_hash, difference, identity, identity_hash, load_yaml, to_plain, to_yaml
from pretrain.config.run import RunConfig
from pretrain.data.loader import BatchLoader
from pretrain.data.prepare import PreparedData, ensure_prepared
from pretrain.engine.base import Engine
from pretrain.engine.build import build_engine, check_capabilities
from pretrain.engine.job import Job, environment_world_size
from pretrain.engine.layout import ParallelLayout
from pretrain.errors import ConfigError
from pretrain.flops import flops_per_token
from pretrain.hooks.base import Hook, Run
from pretrain.hooks.checkpoint import CheckpointHook
from pretrain.hooks.metrics import MetricsHook
from pretrain.hooks.signals import SignalsHook
from pretrain.hooks.validate import ValidationHook
from pretrain.loop import fit
from pretrain.model.spec import ModelSpec
from pretrain.state import RunState
from pretrain.track.sink import RunInfo
from pretrain.track.tracker import build_tracker
from probes.hook import ProbeHook
from probes.suite import load_suite

EXIT_STOPPED = 75
"""Exit code of a run that saved and left because it was told to (EX_TEMPFAIL): start it again to go on."""


def train(config: RunConfig) -> int:
    """Runs, or resumes, a run. Every process of the job calls it.

    Returns:
        0 when the run is complete, `EXIT_STOPPED` when a signal ended it after a save.

    Raises:
        FinelineError: whatever the user can mend; the same on every rank.
    """
    check(config, environment_world_size())
    problems = check_capabilities(config)
    if problems:
        raise ConfigError(problems)
    job = Job(timeout_minutes=config.engine.timeout_minutes)
    try:
        return _train(config, job)
    finally:
        job.close()
