"""Releases of a run: an export per save, its card with scores, and its place on a hub.

What is published is decided by looking: a folder that has a release's name is complete (it appears by one rename),
its digests say whether it still is what was written, and the hub is asked what it has. So whatever ended a release
before, doing it again does what is missing. Both a run (`pretrain.hooks.release`) and the command line work with this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.calendar import Calendar, save_steps
from pretrain.checkpoint.card import Score, complete_card, origin_text
from pretrain.checkpoint.digests import damage_in_release
from pretrain.checkpoint.gates import vocabulary_problem
from pretrain.checkpoint.hub import MAIN, Hub, Pushed
from pretrain.checkpoint.huggingface import Export, export_checkpoint
from pretrain.checkpoint.huggingface_config import CONFIG_NAME as MODEL_CONFIG_NAME
from pretrain.checkpoint.huggingface_source import json_object
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.reader import CheckpointReader, list_checkpoints
from pretrain.checkpoint.tokenizer_parity import ALLOW_MISMATCH, tokenizer_mismatch
from pretrain.config.load import load_yaml
from pretrain.config.run import RunConfig
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.data.run_order import ORDER_NAME, read_order
from pretrain.errors import CheckpointError
from pretrain.locate import CHECKPOINTS, CONFIG_NAME, EXPORTS
from pretrain.locks import exclusive
from pretrain.naming import checkpoint_name, has_fields


@dataclass(frozen=True, slots=True)
class Releases:
    """How the saves of one run are released. One process works with it at a time.

    Attributes:
        directory: of the run.
        config: of the run; its `checkpoint` section says number format, names and repository.
        calendar: of the run.
        out: folder of the releases.
        public: whether repositories that are made are public; otherwise their owner makes them so.
    """

    directory: Path
    config: RunConfig
    calendar: Calendar
    out: Path
    public: bool = False

    @classmethod
    def of_run(cls, directory: Path) -> Releases:
        """Releases as the run's own configuration has them.

        Raises:
            ConfigError: the folder is no run directory.
            DataError: the run's record of its order is damaged.
        """
        config = load_yaml(directory / CONFIG_NAME)
        return cls(directory, config, save_steps(config, chunk_ends=_chunk_ends(directory)), directory / EXPORTS)

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.directory / CHECKPOINTS

    def folder(self, manifest: Manifest) -> Path:
        """Where a save's release lies, or would lie."""
        return self.out / self._filled(self.config.checkpoint.export_name, manifest)

    def places(self, manifest: Manifest) -> list[tuple[str, str]]:
        """Repositories and revisions of a save's release; none where nothing is pushed."""
        template = self.config.checkpoint.hub_repository
        if template is None:
            return []
        repository = self._filled(template, manifest)
        if has_fields(template):
            return [(repository, MAIN)]
        is_last = manifest.step == self.config.total_steps
        return [(repository, self.folder(manifest).name), *([(repository, MAIN)] if is_last else [])]

    def make(self, reader: CheckpointReader, *, replace: bool) -> Export | None:
        """Exports a save to its folder; waits for another process that is making a release of this run.

        Args:
            reader: the save.
            replace: whether a release that is there is made again; otherwise it is left as it is.

        Returns:
            What was made; None where it was left.

        Raises:
            CheckpointError: the checkpoint is damaged, or its export does not pass a gate.
            DataError: the run's record of its order is damaged.
            TokenizerError: the run directory lacks its tokenizer.
        """
        checkpoint, folder = self.config.checkpoint, self.folder(reader.manifest)
        with _exclusive(self.out):
            if folder.exists() and not replace:
                return None
            return export_checkpoint(
                reader,
                folder,
                tokenizer_model=self.directory / TOKENIZER_NAME,
                dtype=checkpoint.export_dtype,
                add_bos=self.config.tokenizer.add_bos,
                card=origin_text(reader.manifest, self.config, chunk_ends=_chunk_ends(self.directory)),
                tolerance=checkpoint.export_tolerance,
                allow_tokenizer_mismatch=checkpoint.allow_tokenizer_mismatch,
            )

    def check(self, manifest: Manifest) -> None:
        """Reads a release that is there, every byte of it.

        Raises:
            CheckpointError: it is damaged, has another number format or vocabulary, or its tokenizer files give other
                ids than training and nobody allowed that.
        """
        folder, dtype = self.folder(manifest), self.config.checkpoint.export_dtype
        remedy = "Move the folder away and release it again."
        problem = damage_in_release(folder) or vocabulary_problem(folder)
        if problem is not None:
            raise CheckpointError(f"{problem}. {remedy}")
        self._require_tokenizer(folder)
        config = json_object(folder / MODEL_CONFIG_NAME)
        found = config.get("dtype") or config.get("torch_dtype")
        if found != dtype:
            raise CheckpointError(f"{folder} is {found}, not {dtype}. {remedy} Or choose another folder (--out).")

    def complete(self, manifest: Manifest, scores: Sequence[Score]) -> bool:
        """Brings the card of a release up to date; returns whether it changed.

        Args:
            manifest: of the save.
            scores: all there are of its step.

        Raises:
            CheckpointError: the card cannot be read or written.
        """
        places, loaded_from = self.places(manifest), None
        if places:
            repository, revision = places[0]
            loaded_from = f'"{repository}"' + (f', revision="{revision}"' if revision != MAIN else "")
        return complete_card(self.folder(manifest), scores, loaded_from=loaded_from)

    def push(self, manifest: Manifest, hub: Hub) -> list[Pushed]:
        """Gives the hub what it lacks of a release.

        Raises:
            CheckpointError: the hub cannot be reached or refuses, a local file is damaged, or the tokenizer files give
                other ids than training and nobody allowed that, as in releases of versions that did not look.
        """
        message = f"Step {manifest.step:_}, {manifest.meta.run_state.get('tokens', 0):_} tokens"
        folder = self.folder(manifest)
        if self.places(manifest):
            self._require_tokenizer(folder)
        return [
            hub.push(folder, repository, revision=revision, message=message, public=self.public)
            for repository, revision in self.places(manifest)
        ]

    def present(self) -> list[Manifest]:
        """Saves whose release is there, oldest first."""
        usable = [info.manifest for info in list_checkpoints(self.checkpoints) if info.manifest is not None]
        return [manifest for manifest in usable if self.folder(manifest).is_dir()]

    def _require_tokenizer(self, folder: Path) -> None:
        if not self.config.checkpoint.allow_tokenizer_mismatch and (mismatch := tokenizer_mismatch(folder)) is not None:
            raise CheckpointError(
                f"{folder}: {mismatch} {ALLOW_MISMATCH} Or move the folder away and release it again."
            )

    def _filled(self, template: str, manifest: Manifest) -> str:
        step = manifest.step
        tokens = manifest.meta.run_state.get("tokens", self.config.batch_sizes.tokens(step))
        return checkpoint_name(
            template, run=self.config.run.name, step=step, tokens=tokens, index=self.calendar.index(step)
        )


def _chunk_ends(directory: Path) -> list[int]:
    return read_order(directory).chunk_ends if (directory / ORDER_NAME).exists() else []


@contextlib.contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """One process at a time makes releases in a folder; the lock ends with the process that holds it."""
    with contextlib.ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            # The lock is beside the folder, which holds releases and nothing else.
            held.enter_context(exclusive(out.with_name(f".{out.name}.lock")))
        except OSError as error:
            raise CheckpointError(f"{out} cannot be written: {error.strerror}. Choose another folder.") from error
        yield
