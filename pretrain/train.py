"""One run from its configuration to its last checkpoint: the composition root, and the only importer of probes.

config → run directory → data → engine → resume → hooks → fit. Every process runs the same lines; what only one
must do goes through `Job.once`, which gives its result or its error to all; what each does alone and may fail at goes
through `Job.everywhere`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint.calendar import Calendar, check_names, save_steps
from pretrain.checkpoint.gates import tokenizer_doubt
from pretrain.checkpoint.huggingface_source import HuggingFaceSource
from pretrain.checkpoint.manifest import MANIFEST_NAME, CheckpointMeta, Manifest
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reader import CheckpointReader, find_checkpoint, list_checkpoints, newest_valid
from pretrain.checkpoint.release import Releases
from pretrain.checkpoint.retain import retain
from pretrain.config.checks import check
from pretrain.config.load import changed_settings, config_hash, identity_hash, load_yaml, to_plain
from pretrain.config.run import RunConfig
from pretrain.data import epochs
from pretrain.data.loader import BatchLoader
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.data.order import SampleOrder
from pretrain.data.prepare import PreparedData, ensure_prepared, open_prepared
from pretrain.data.prepared import check_folder, is_prepared
from pretrain.data.run_order import (
    ORDER_NAME,
    OrderHistory,
    RunOrder,
    begin,
    chunk_ends,
    go_on,
    read_order,
    sample_order,
    write_order,
)
from pretrain.directory import claim, record
from pretrain.durable import replace_file
from pretrain.engine.base import Engine
from pretrain.engine.build import build_engine, check_capabilities, check_machine
from pretrain.engine.job import Job
from pretrain.engine.layout import ParallelLayout
from pretrain.errors import CheckpointError, ConfigError
from pretrain.flops import FlopsPerToken, flops_per_token
from pretrain.hooks.base import Hook, Run
from pretrain.hooks.checkpoint import CheckpointHook
from pretrain.hooks.dynamics import DynamicsHook
from pretrain.hooks.fp8 import Fp8Hook
from pretrain.hooks.metrics import MetricsHook
from pretrain.hooks.release import ReleaseHook
from pretrain.hooks.signals import SignalsHook
from pretrain.hooks.validate import ValidationHook
from pretrain.launcher import read_launched
from pretrain.length import LengthChange, check_length
from pretrain.locate import CHECKPOINTS, CONFIG_NAME, EXPORTS, checkpoints_of
from pretrain.loop import fit
from pretrain.model.spec import ModelSpec
from pretrain.state import RunState
from pretrain.track.sink import RunInfo
from pretrain.track.tracker import build_tracker
from probes.hook import ProbeHook
from probes.late import LateScoresHook
from probes.state_hook import StateHook
from probes.suite import Suite, load_suite

EXIT_STOPPED = 75
"""Exit code of a run that saved and left because it was told to (EX_TEMPFAIL): start it again to go on."""


def train(config: RunConfig) -> int:
    """Runs, or resumes, a run. Every process of the job calls it.

    Returns:
        0 when the run is complete, `EXIT_STOPPED` when a signal ended it after a save.

    Raises:
        FinelineError: whatever the user can mend.
    """
    world_size = read_launched().world_size
    check(config, world_size)
    problems = [*check_capabilities(config, world_size=world_size), *check_machine(config)]
    if problems:
        raise ConfigError(problems)
    suite = load_suite(config.probe.suite) if config.probe.mode != "off" else None
    job = Job(timeout_minutes=config.engine.timeout_minutes)
    try:
        return _train(config, suite, job)
    finally:
        job.close()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the run is made of once data and engine are there."""

    config: RunConfig
    suite: Suite | None
    job: Job
    directory: Path
    data: PreparedData
    spec: ModelSpec
    engine: Engine

    @property
    def flops(self) -> FlopsPerToken:
        return flops_per_token(
            self.config.model, vocab_size=self.spec.vocab_size, sequence_length=self.config.train.sequence_length
        )


def _train(config: RunConfig, suite: Suite | None, job: Job) -> int:
    warnings: list[str] = []
    directory = job.once(lambda: claim(config, find_saves=list_checkpoints, warn=warnings.append))
    for warning in warnings:
        _say(f"warning: {warning}")
    resumed = job.once(lambda: newest_valid(directory / CHECKPOINTS, log=_say))
    changes = job.once(lambda: _changes(config, directory, resumed))
    data = _prepare_data(config, job, directory)
    spec = ModelSpec.from_config(config.model, data.tokenizer.vocab_size)
    engine = build_engine(config, spec, job.device)
    parts = _Parts(config, suite, job, directory, data, spec, engine)
    state, resume_step, doubt = job.everywhere(lambda: _resume(parts, resumed), what="Loading the weights")
    job.once(lambda: _keep_records(engine, data, directory))
    history, order_changes = _order_history(parts, state)
    order = sample_order(config, data, history)
    info = _run_info(parts, resume_step)
    tracker = job.everywhere(lambda: build_tracker(config.track, info, rank=job.rank), what="Opening the record")
    ends = chunk_ends(order, total_steps=config.total_steps)
    job.once(lambda: write_order(directory, RunOrder(history, str(data.directory), job.world_size, ends)))
    calendar = save_steps(config, chunk_ends=ends)
    check_names(config, calendar)
    run = Run(
        config=config,
        state=state,
        engine=engine,
        tracker=tracker,
        info=info,
        job=job,
        checkpoints=directory / CHECKPOINTS,
        calendar=calendar,
    )
    ahead = config.data.read_ahead_batches
    with tracker, _loader(parts, order).iterate(state.samples, read_ahead=ahead) as batches:
        what = "resume" if resume_step >= 0 else "start"
        tracker.event(what, step=state.step, parameters=spec.num_parameters, **engine.describe())
        for warning in warnings:
            tracker.event("config_restored", step=state.step, warning=warning)
        if doubt is not None:
            tracker.warn("tokenizer_doubt", doubt, step=state.step)
        if changes.length is not None:
            tracker.warn("length_changed", changes.length.sentence(), step=state.step, **changes.length.fields())
        if order_changes:
            sample = history.skips.index(state.samples)
            tracker.event("order_changed", step=state.step, changes=order_changes, sample=sample)
        repeated = epochs.repeated_sources(order, num_samples=config.batch_sizes.samples(config.total_steps))
        if repeated:
            tracker.warn("sources_repeated", epochs.warning(repeated), step=state.step, **epochs.fields(repeated))
        if changes.settings:
            tracker.event("settings_changed", step=state.step, changes=changes.settings)
            job.once(lambda: record(config))  # after the events: a start that is killed in between reports them again
        fit(run, batches, _hooks(parts, order, calendar))
        finished = state.step >= config.total_steps
        tracker.event("finished" if finished else "stopped", step=state.step)
    # A launcher ends all ranks as soon as one leaves with a code that is not 0: rank 0 must have closed its sinks.
    job.barrier()
    engine.close()
    return 0 if finished else EXIT_STOPPED


@dataclass(frozen=True, slots=True)
class _Changes:
    """In what a run that goes on differs from its recorded configuration."""

    length: LengthChange | None
    settings: list[str]


def _changes(config: RunConfig, directory: Path, resumed: Path | None) -> _Changes:
    before = load_yaml(directory / CONFIG_NAME)
    start = config.checkpoint.start_step
    reached = {"step": start, "tokens": config.batch_sizes.tokens(start)}
    if resumed is not None:
        reached = Manifest.read(resumed).meta.run_state
    length = check_length(before, config, step=reached["step"], tokens=reached["tokens"])
    return _Changes(length, changed_settings(before, config))


def _keep_records(engine: Engine, data: PreparedData, directory: Path) -> None:
    data.tokenizer.save(directory / TOKENIZER_NAME)
    for name, text in engine.records().items():
        replace_file(directory / name, text)


def _prepare_data(config: RunConfig, job: Job, directory: Path) -> PreparedData:
    """Rank 0 prepares what is not there yet; every rank opens it. A run goes on with what it was begun with."""

    def prepare() -> Path | str:
        if config.data.prepared_dir is None and (directory / ORDER_NAME).exists():
            used = read_order(directory).prepared
            if is_prepared(used):
                check_folder(used, full=config.data.verify == "full")
                return used
        return ensure_prepared(config, run_root=Path(config.run.dir), progress=_say).directory

    folder = job.once(prepare)
    return job.everywhere(lambda: open_prepared(config, directory=folder), what="Opening the prepared data")


def _order_history(parts: _Parts, state: RunState) -> tuple[OrderHistory, list[str]]:
    """What the order of samples was up to here and is from now on, which the state takes over, and what changed."""
    if state.order:
        past = OrderHistory.from_state_dict(state.order)
        history, changes = go_on(past, parts.config, parts.data, consumed=state.samples)
    else:
        history, changes = begin(parts.config, parts.data), []
    state.order = history.state_dict()
    return history, changes


def _loader(parts: _Parts, order: SampleOrder) -> BatchLoader:
    config, job = parts.config, parts.job
    layout = ParallelLayout.create(config, world_size=job.world_size)
    return BatchLoader(
        order,
        {name: source.train for name, source in parts.data.sources.items()},
        batch_sizes=config.batch_sizes,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=layout.coordinates(job.rank).data,
        dp_size=layout.data,
        vocab_size=parts.data.tokenizer.vocab_size,
        document_mask=config.data.document_mask,
        left_out_id=parts.data.tokenizer.bos_id if config.train.loss == "sequences" else None,
    )


def _resume(parts: _Parts, path: Path | None) -> tuple[RunState, int, str | None]:
    """The position to continue from, with the engine's state loaded; step -1 for a new run. And a warning, if any."""
    state = RunState(seed=parts.config.run.seed)
    if path is None:
        doubt = _start_from(parts, state)
        return state, -1, doubt
    reader = CheckpointReader(path)
    meta = reader.manifest.meta
    if meta.identity_hash != identity_hash(parts.config):
        raise CheckpointError(f"{path} was made by another configuration than the run directory's config.yaml.")
    if meta.tokenizer_fingerprint != parts.data.tokenizer.fingerprint:
        raise CheckpointError(
            f"{path} was made with tokenizer {meta.tokenizer_fingerprint}, the prepared data in "
            f"{parts.data.directory} with {parts.data.tokenizer.fingerprint}. Set data.prepared_dir or tokenizer.path "
            f"to the run's own."
        )
    parts.engine.sharded_state().load(reader)
    state.load_state_dict(meta.run_state)
    return state, state.step, None


def _start_from(parts: _Parts, state: RunState) -> str | None:
    """Gives a new run the weights it was told to start with, and the place in the run that they are of.

    Returns:
        What speaks against using them with the run's tokenizer; None where nothing does.
    """
    if parts.config.checkpoint.start_from is None:
        return None
    named = Path(parts.config.checkpoint.start_from)
    folder = parts.job.once(lambda: _weights_in(named))
    source = CheckpointReader(folder) if (folder / MANIFEST_NAME).exists() else HuggingFaceSource(folder, parts.spec)
    meta = source.manifest.meta if isinstance(source, CheckpointReader) else None
    if meta is not None and (problems := parts.spec.differences(meta.model)):
        raise ConfigError([f"checkpoint.start_from={named}: {problem}." for problem in problems])
    parts.engine.sharded_state().start_from(source)
    sizes, state.step = parts.config.batch_sizes, parts.config.checkpoint.start_step
    state.tokens, state.samples = sizes.tokens(state.step), sizes.tokens(state.step) // sizes.sequence_length
    doubt = tokenizer_doubt(
        folder,
        parts.data.tokenizer,
        vocab_size=meta.model.vocab_size if meta else parts.spec.vocab_size,
        fingerprint=meta.tokenizer_fingerprint if meta else None,
    )
    return None if doubt is None else f"checkpoint.start_from: {doubt} Set tokenizer.path to the model's own."


def _weights_in(path: Path) -> Path:
    """The newest checkpoint of a run or of a folder of checkpoints; any other path is the weights themselves."""
    return find_checkpoint(path, say=_say) if list_checkpoints(checkpoints_of(path)) else path


def _run_info(parts: _Parts, resume_step: int) -> RunInfo:
    config = parts.config
    domains = dict.fromkeys([*(parts.suite.domains if parts.suite else ()), *config.data.sources])
    return RunInfo(
        directory=parts.directory,
        name=config.run.name,
        config=to_plain(config),
        config_hash=config_hash(config),
        total_steps=config.total_steps,
        resume_step=resume_step,
        domains=tuple(domains),
    )


def _hooks(parts: _Parts, order: SampleOrder, calendar: Calendar) -> list[Hook]:
    """In the order they act at a save: measure, save, probe, report releases."""
    config, sources = parts.config, parts.data.sources
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    held_out = {name: source for name, source in sources.items() if len(source.validation_tokens)}
    validation = ValidationHook(
        {name: source.validation_tokens for name, source in held_out.items()},
        {name: source.validation_token_bytes for name, source in held_out.items()},
        sequence_length=config.train.sequence_length,
        tokens_per_row=config.probe.tokens_per_row,
        document_starts={n: source.validation_starts for n, source in held_out.items()}
        if config.data.document_mask
        else None,
    )
    releases = ReleaseHook(Releases(parts.directory, config, calendar, parts.directory / EXPORTS))
    hooks: list[Hook] = [
        MetricsHook(flops_per_token=parts.flops, device_name=device, epoch_tokens=order.epoch_tokens),
        *([DynamicsHook(config.track.dynamics.every)] if config.track.dynamics.every is not None else []),
        SignalsHook(),
        *([validation] if held_out else []),
        *([Fp8Hook(config.precision.fp8_tolerance)] if config.precision.fp8 else []),
        CheckpointHook(_publisher(parts, calendar, releases), _checkpoint_meta(parts)),
    ]
    if config.probe.mode != "off":
        hooks.append(LateScoresHook())  # inline too: a watcher may make up for what was left out
    if config.probe.mode == "inline" and parts.suite is not None:
        hooks.append(
            ProbeHook(
                suite=parts.suite,
                tokenizer=parts.data.tokenizer,
                max_length=config.train.sequence_length,
                flops_per_token=parts.flops.matmul,
            )
        )
    if config.probe.mode != "off":
        hooks.append(StateHook(config.probe.references))
    return [*hooks, releases]


def _publisher(parts: _Parts, calendar: Calendar, releases: ReleaseHook) -> Publisher:
    return Publisher(
        parts.directory / CHECKPOINTS,
        rank=parts.job.rank,
        world_size=parts.job.world_size,
        barrier=parts.job.barrier,
        background=parts.config.checkpoint.background,
        on_published=_after_publication(parts, calendar, releases),
    )


def _checkpoint_meta(parts: _Parts) -> CheckpointMeta:
    return CheckpointMeta(
        optimizer_step=0,
        run_state={},
        config_hash=config_hash(parts.config),
        identity_hash=identity_hash(parts.config),
        model=parts.spec,
        sequence_length=parts.config.train.sequence_length,
        tokenizer_fingerprint=parts.data.tokenizer.fingerprint,
        layout=parts.engine.describe(),
    )


def _after_publication(parts: _Parts, calendar: Calendar, releases: ReleaseHook) -> Callable[[Path], None]:
    """Release and retention, on the thread that wrote the checkpoint; a refused export must not fill the disk."""

    def act(checkpoint: Path) -> None:
        try:
            releases.published(checkpoint)
        finally:
            retain(checkpoint.parent, keep=parts.config.checkpoint.keep, always=calendar.keeps_state)

    return act


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
