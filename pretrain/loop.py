"""The training loop: next batch, one step, hooks. Everything else is somewhere else, on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pretrain.engine.base import Batch, StepResult
from pretrain.hooks.base import Hook, Run, StepReport
from pretrain.schedule import learning_rate
from pretrain.state import RunState


def fit(run: Run, batches: Iterator[Batch], hooks: Sequence[Hook]) -> None:
    """Trains from the run's present step to its last. Every rank calls it.

    Args:
        run: the run; its state advances.
        batches: this rank's batches, the first at `run.state.samples`.
        hooks: in the order they act.
    """
    sizes = run.config.batch_sizes
    for hook in hooks:
        hook.on_start(run)
    # A new run saves its step 0. A resumed one stands at a save: what came after it may have been cut short.
    if run.calendar.is_due(run.state.step):
        _save(run, hooks)
    while run.state.step < run.info.total_steps and not run.stopping:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        # The rate is that of the tokens before the step, so that a resumed run sees the same one.
        rate = learning_rate(
            run.config.schedule,
            run.state.tokens,
            total_tokens=sizes.tokens(run.info.total_steps),
            batch_sizes=sizes,
        )
        result = run.engine.train_step(batch, rate, observe=run.observe_next)
        _advance(run.state, batch, result)
        seconds = time.perf_counter() - started
        report = StepReport(result=result, learning_rate=rate, seconds=seconds, data_seconds=waited)
        for hook in hooks:
            hook.on_step(run, report)
        if run.calendar.is_due(run.state.step) or run.stopping:
            _save(run, hooks)
    for hook in hooks:
        hook.on_end(run)


def _save(run: Run, hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        hook.on_save(run)


def _advance(state: RunState, batch: Batch, result: StepResult) -> None:
    state.step += 1
    state.tokens += result.tokens
    state.samples = batch.first_sample + batch.num_samples
    for name, count in batch.source_tokens.items():
        state.source_tokens[name] = state.source_tokens.get(name, 0) + count
