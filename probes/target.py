"""What is scored: a checkpoint of ours, the newest of a run, or a local Hugging Face LLaMA folder.

Finds out everything that scoring needs to know of it: sizes, context, tokenizer, and where on the curve it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.gates import tokenizer_doubt
from pretrain.checkpoint.huggingface_config import CONFIG_NAME as HUGGINGFACE_CONFIG
from pretrain.checkpoint.huggingface_config import read_huggingface_config
from pretrain.checkpoint.huggingface_source import HuggingFaceSource
from pretrain.checkpoint.manifest import MANIFEST_NAME, Manifest
from pretrain.checkpoint.reader import CheckpointReader, find_checkpoint, list_checkpoints
from pretrain.checkpoint.source import TensorSource
from pretrain.config.load import load_yaml
from pretrain.config.run import RunConfig
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, ConfigError, ProbeError
from pretrain.locate import CONFIG_NAME, EXPORTS, checkpoints_of
from pretrain.model.spec import ModelSpec
from probes.score import CheckpointFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Weights on disk and what is known of them.

    Attributes:
        path: the checkpoint, or the Hugging Face folder.
        run: directory of the run it is of; None if it is of none.
        config: the run's configuration.
        spec: sizes of the model.
        max_length: longest model input in tokens.
        add_bos: prompts begin with `<s>`; None if nobody says.
        compute: precision it was computed in.
        tokenizer_fingerprint: of the tokenizer it was trained with; None for a Hugging Face folder.
        facts: what measurements say of it.
    """

    path: Path
    run: Path | None
    config: RunConfig | None
    spec: ModelSpec
    max_length: int
    add_bos: bool | None
    compute: str
    tokenizer_fingerprint: str | None
    facts: CheckpointFacts

    def open(self) -> TensorSource:
        """Its tensors. Each rank opens its own.

        Raises:
            CheckpointError: it has gone, or is damaged.
        """
        if self.tokenizer_fingerprint is None:
            return HuggingFaceSource(self.path, self.spec)
        return CheckpointReader(self.path)


def find_target(path: Path, *, step: int | None = None, say: Callable[[str], None] = print) -> Target:
    """What a path names. Call it on one rank: it may read whole checkpoints.

    Args:
        path: a checkpoint, a run directory or its folder of checkpoints, or a Hugging Face folder.
        step: of a run: this checkpoint, not the newest.
        say: told which checkpoint of a run was chosen, and why newer ones were passed over.

    Raises:
        CheckpointError: nothing that can be scored; says what would be.
    """
    if (path / MANIFEST_NAME).is_file():
        return checkpoint_target(path)
    if (path / HUGGINGFACE_CONFIG).is_file():
        return _huggingface_target(path)
    if (path / CONFIG_NAME).is_file() or list_checkpoints(checkpoints_of(path)):
        return checkpoint_target(find_checkpoint(path, step=step, say=say))
    raise CheckpointError(
        f"{path} {'is none of what can be scored' if path.is_dir() else 'is no folder'}. Name a run directory "
        f"({CONFIG_NAME}), one of its checkpoints ({MANIFEST_NAME}), or a Hugging Face LLaMA ({HUGGINGFACE_CONFIG})."
    )


def checkpoint_target(path: Path) -> Target:
    """A checkpoint folder of ours, with its run if it lies in one.

    Raises:
        CheckpointError: it has gone, or is damaged.
        ConfigError: the run's `config.yaml` cannot be read.
    """
    meta = (manifest := Manifest.read(path)).meta
    run = path.resolve().parent.parent
    config = load_yaml(run / CONFIG_NAME) if (run / CONFIG_NAME).is_file() else None
    tokens = int(meta.run_state.get("tokens", 0))
    facts = CheckpointFacts(
        run=config.run.name if config else path.name,
        step=manifest.step,
        tokens=tokens,
        flops=tokens * flops_per_token(meta.model),
        config_hash=meta.config_hash,
    )
    return Target(
        path=path,
        run=run if config else None,
        config=config,
        spec=meta.model,
        max_length=meta.sequence_length,
        add_bos=config.tokenizer.add_bos if config else None,
        compute=config.precision.compute if config else str(meta.layout.get("compute", "fp32")),
        tokenizer_fingerprint=meta.tokenizer_fingerprint,
        facts=facts,
    )


def flops_per_token(spec: ModelSpec) -> float:
    """Training FLOPs of one token as measurements count them: `pretrain.flops`' `matmul`."""
    return 6.0 * spec.num_matmul_parameters


def weights_digest(manifest: Manifest) -> str:
    """16 hexadecimal digits that name a checkpoint's weights; moments that are dropped later do not change them."""
    digest = hashlib.sha256()
    at = manifest.kinds.index("param")
    for chunk in sorted(manifest.chunks, key=lambda chunk: (chunk.key, chunk.offset, chunk.start)):
        digest.update(f"{chunk.key} {chunk.offset} {chunk.start} {chunk.numel} {chunk.digests[at]}\n".encode())
    return digest.hexdigest()[:16]


def find_tokenizer(target: Target, given: str | None) -> Tokenizer:
    """The tokenizer the model was trained with.

    Args:
        target: the model.
        given: what the user named.

    Raises:
        ProbeError: not found, or another one than the model's.
        TokenizerError: it cannot be read.
    """
    if given is None and target.tokenizer_fingerprint is None and not (target.path / TOKENIZER_NAME).is_file():
        raise ProbeError(
            f"{target.path} holds no {TOKENIZER_NAME}, the SentencePiece model that LLaMA tokenizers are. "
            f"Name one with tokenizer=FILE; other kinds of tokenizers are not supported."
        )
    tried: list[str] = []
    for path in [Path(given)] if given is not None else _tokenizer_places(target):
        if given is None and not path.is_file():
            continue
        tokenizer = Tokenizer.load(path)
        if target.tokenizer_fingerprint in (None, tokenizer.fingerprint):
            return _fitting(tokenizer, path, target)
        tried.append(f"{path} has {tokenizer.fingerprint}")
    listed = f" {'; '.join(tried)}." if tried else ""
    raise ProbeError(
        f"{target.path} was trained with tokenizer {target.tokenizer_fingerprint}, which was not found.{listed} Name "
        f"it with tokenizer=FILE; it is the {TOKENIZER_NAME} of the prepared data, and of every export."
    )


def tokenizer_warning(target: Target, tokenizer: Tokenizer) -> str | None:
    """What speaks against scoring a model with a tokenizer that `find_tokenizer` gave; None where nothing does."""
    doubt = tokenizer_doubt(
        target.path, tokenizer, vocab_size=target.spec.vocab_size, fingerprint=target.tokenizer_fingerprint
    )
    return None if doubt is None else f"{doubt} Name the tokenizer of {target.path} with tokenizer=FILE."


def _fitting(tokenizer: Tokenizer, path: Path, target: Target) -> Tokenizer:
    if tokenizer.vocab_size > target.spec.vocab_size:
        raise ProbeError(
            f"tokenizer={path} has {tokenizer.vocab_size} pieces, more than the {target.spec.vocab_size} of the model "
            f"in {target.path}. Name the model's own."
        )
    return tokenizer


def _tokenizer_places(target: Target) -> Iterator[Path]:
    """Where a tokenizer may lie, most likely first."""
    if target.config is not None and target.run is not None:
        yield target.run / TOKENIZER_NAME
        if target.config.tokenizer.path is not None:
            yield Path(target.config.tokenizer.path)
        if target.config.data.prepared_dir is not None:
            yield Path(target.config.data.prepared_dir) / TOKENIZER_NAME
        yield from sorted(target.run.glob(f"{EXPORTS}/*/{TOKENIZER_NAME}"))
        yield from sorted(target.run.parent.glob(f"prepared/*/{TOKENIZER_NAME}"))
    yield target.path / TOKENIZER_NAME


def _huggingface_target(path: Path) -> Target:
    model = read_huggingface_config(path)
    name = path.resolve().name
    return Target(
        path=path,
        run=None,
        config=None,
        spec=model.spec,
        max_length=model.max_length,
        add_bos=model.add_bos,
        compute=model.compute,
        tokenizer_fingerprint=None,
        facts=CheckpointFacts(run=name, step=0, tokens=0, flops=0.0, config_hash=""),
    )


def require_add_bos(target: Target, given: bool | None) -> bool:
    """Whether prompts begin with `<s>`: what the user says, else what the model's files say.

    Raises:
        ConfigError: neither says.
    """
    if given is None and target.add_bos is None:
        raise ConfigError(
            f"Neither {target.path} nor the command line says whether prompts begin with <s>. Add add_bos=true (as "
            f"LLaMA and OpenLLaMA do) or add_bos=false."
        )
    return bool(target.add_bos if given is None else given)
