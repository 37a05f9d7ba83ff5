"""The training loop: next batch, one step, hooks. Everything else is somewhere else, on purpose.

Where the engine only gives a step to its device (`PendingStep.late`), the next one is given to it before the result of
this one is read, so that the device never waits for the host. Whoever looks at the model sees all steps done: before a
save, an observed step's figures and the end everything is read and reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Iterator, Sequence

from pretrain.engine.base import Batch, PendingStep
from pretrain.hooks.base import Hook, Run, StepReport
from pretrain.schedule import learning_rate
from pretrain.state import RunState

_COLLECT_EVERY_STEPS = 100
"""As torchtitan and Megatron-LM do it: Python's own collector stops one rank, and with it all, at any moment."""


def fit(run: Run, batches: Iterator[Batch], hooks: Sequence[Hook]) -> None:
    """Trains from the run's present step to its last. Every rank calls it.

    Args:
        run: the run; its state advances.
        batches: this rank's batches, the first at `run.state.samples`.
        hooks: in the order they act.
    """
    for hook in hooks:
        hook.on_start(run)
    # A new run saves its step 0. A resumed one stands at a save: what came after it may have been cut short.
    if run.calendar.is_due(run.state.step):
        _save(run, hooks)
    reporter = _Reporter(run, hooks)
    with _collected_in_step():
        while run.state.step < run.info.total_steps and not run.stopping:
            begun = _begin(run, batches)
            reporter.add(begun)
            is_due = run.calendar.is_due(run.state.step)
            is_last = run.stopping or run.state.step == run.info.total_steps
            if is_due or is_last or begun.observed or not begun.step.late:
                reporter.flush()
            if is_due or run.stopping:
                _save(run, hooks)
                gc.collect()
            elif run.state.step % _COLLECT_EVERY_STEPS == 0:
                gc.collect(1)
    for hook in hooks:
        hook.on_end(run)


@dataclasses.dataclass(frozen=True, slots=True)
class _Begun:
    """A step that was given to the engine: what its report needs beside its result."""

    step: PendingStep
    state: RunState
    learning_rate: float
    started: float
    data_seconds: float
    observed: bool


class _Reporter:
    """Reads results and tells the hooks, in the order of the steps, at most one step late."""

    def __init__(self, run: Run, hooks: Sequence[Hook]) -> None:
        self._run, self._hooks = run, hooks
        self._waiting: _Begun | None = None
        self._last_done = 0.0

    def add(self, begun: _Begun) -> None:
        """Takes a step; the one before it is reported now."""
        self.flush()
        self._waiting = begun

    def flush(self) -> None:
        """Reports what waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._report(waiting)

    def _report(self, begun: _Begun) -> None:
        result = begun.step.result()
        done = time.perf_counter()
        report = StepReport(
            result=result,
            state=begun.state,
            learning_rate=begun.learning_rate,
            seconds=done - max(begun.started, self._last_done),
            data_seconds=begun.data_seconds,
        )
        self._last_done = done
        for hook in self._hooks:
            hook.on_step(self._run, report)


def _begin(run: Run, batches: Iterator[Batch]) -> _Begun:
    started = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - started
    # The rate is that of the tokens before the step, so that a resumed run sees the same one.
    sizes = run.config.batch_sizes
    rate = learning_rate(
        run.config.schedule,
        run.state.tokens,
        total_tokens=sizes.tokens(run.info.total_steps),
        batch_sizes=sizes,
    )
    observed = run.is_observed(run.state.step + 1)
    step = run.engine.train_step(batch, rate, observe=observed)
    _advance(run.state, batch, step.tokens)
    state = dataclasses.replace(run.state, source_tokens=dict(run.state.source_tokens))
    return _Begun(step, state, rate, started, waited, observed)


def _save(run: Run, hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        hook.on_save(run)


def _advance(state: RunState, batch: Batch, tokens: int) -> None:
    state.step += 1
    state.tokens += tokens
    state.samples = batch.first_sample + batch.num_samples
    for name, count in batch.source_tokens.items():
        state.source_tokens[name] = state.source_tokens.get(name, 0) + count


@contextlib.contextmanager
def _collected_in_step() -> Iterator[None]:
    """Python's collector is off while it is entered, and what exists is never looked at again."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
