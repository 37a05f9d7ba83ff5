"""Releases while a run goes on: exports as saves are published, cards as scores come, pushes where a hub is named.

Exports are made on the thread that publishes checkpoints, on rank 0. What a hub refuses, or a card, is an event and is
tried again at the next save and at the end; training never waits for it longer than for the save itself.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.checkpoint.card import read_scores
from pretrain.checkpoint.hub import Hub
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.release import Releases
from pretrain.checkpoint.tokenizer_parity import ALLOW_MISMATCH, export_mismatch
from pretrain.config.run import RunConfig
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.errors import FinelineError
from pretrain.hooks.base import Run, StepReport


class ReleaseHook:
    """Goes last: at the end all scores have come.

    Args:
        releases: how the run's saves are released.
    """

    def __init__(self, releases: Releases) -> None:
        self._releases = releases
        self._hub = Hub()
        self._failures: list[tuple[int, str]] = []
        self._open: dict[int, Manifest] | None = None
        """Releases whose card or place on the hub may lack something; None before they were looked for."""
        self._resumed_from: Path | None = None
        """A checkpoint whose export the process before this one may not have come to."""

    def published(self, checkpoint: Path) -> None:
        """Releases a checkpoint that was just published, if the run releases it, and goes on with those before it.

        Called on rank 0, on the thread that published.

        Raises:
            CheckpointError: the export does not pass a gate, or cannot be written.
        """
        if self._releases.config.checkpoint.export == "none":
            return
        reader = CheckpointReader(checkpoint)
        manifest = reader.manifest
        try:
            if self._is_released(manifest):
                self._releases.make(reader, replace=True)
                self._opened()[manifest.step] = manifest
        finally:
            self._go_on()

    def on_start(self, run: Run) -> None:
        """Warns of exports that will be refused because of the tokenizer.

        Remembers what the run resumed from: it may have been killed between the checkpoint and its export.
        """
        if run.job.rank == 0 and run.info.resume_step >= 0:
            self._resumed_from = run.checkpoint
        if run.job.rank == 0 and run.config.checkpoint.export != "none":
            problem = self._tokenizer_problem(run.config)
            if problem is not None:
                run.tracker.warn("tokenizer_mismatch", problem, step=run.state.step)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Nothing to do."""

    def on_save(self, run: Run) -> None:
        """Reports what failed since the last save."""
        self._report(run)

    def on_end(self, run: Run) -> None:
        """Completes cards and pushes once more, now that the last scores are there."""
        if run.job.rank == 0 and run.config.checkpoint.export != "none":
            self._go_on(everything=True)
        self._report(run)

    def _tokenizer_problem(self, config: RunConfig) -> str | None:
        """Why the exports of this run will be refused, or what their cards will say; None where nothing is wrong."""
        try:
            path = self._releases.directory / TOKENIZER_NAME
            mismatch = export_mismatch(path, add_bos=config.tokenizer.add_bos)
        except FinelineError as error:
            return f"The tokenizer files of exports cannot be checked: {error}"
        if mismatch is None:
            return None
        if config.checkpoint.allow_tokenizer_mismatch:
            return f"{mismatch} Exports are published all the same (checkpoint.allow_tokenizer_mismatch=true)."
        return f"Every export of this run will be refused. {mismatch} {ALLOW_MISMATCH}"

    def _is_released(self, manifest: Manifest) -> bool:
        config = self._releases.config
        return config.checkpoint.export == "all" or manifest.step == config.total_steps

    def _opened(self) -> dict[int, Manifest]:
        if self._open is None:
            self._open = {manifest.step: manifest for manifest in self._releases.present()}
        return self._open

    def _go_on(self, *, everything: bool = False) -> None:
        """Completes and pushes what is open; at the end also looks whether older cards have got more scores."""
        step = -1
        try:
            opened, changed = self._opened(), []
            self._make_up_for_the_last()
            scores = read_scores(self._releases.directory)
            for manifest in self._releases.present() if everything else list(opened.values()):
                step = manifest.step
                if self._releases.complete(manifest, scores.get(step, [])) or step in opened:
                    changed.append(manifest)
            for manifest in changed:
                step = manifest.step
                opened[step] = manifest
                self._releases.push(manifest, self._hub)
                if step in scores:
                    del opened[step]
        except (FinelineError, OSError) as error:  # what fails for one will for the rest, which waits with it
            self._failures.append((step, str(error)))

    def _make_up_for_the_last(self) -> None:
        path, self._resumed_from = self._resumed_from, None
        if path is not None:
            reader = CheckpointReader(path)
            if self._is_released(reader.manifest) and self._releases.make(reader, replace=False) is not None:
                self._opened()[reader.manifest.step] = reader.manifest

    def _report(self, run: Run) -> None:
        while self._failures:
            step, cause = self._failures.pop(0)
            run.tracker.event("release_failed", step=run.state.step, release=step, cause=cause)
