"""The seam: what the loop, the hooks and the prober may ask of a training engine.

Types here are numpy and plain Python, so that data, probes and tests can build them without an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from pretrain.checkpoint.blocks import Chunk
    from pretrain.checkpoint.reader import CheckpointReader
    from pretrain.checkpoint.source import TensorSource


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step's share of this data-parallel rank.

    Attributes:
        tokens_MBT: int32 [num_microbatches, micro_batch_size, sequence_length + 1]; inputs are [..., :-1],
            labels [..., 1:].
        first_sample: index in the run's sample order of the global batch's first sequence.
        num_samples: sequences of the global batch, over all ranks.
        source_tokens: tokens per source of the global batch, over all ranks.
        ends_MBS: int32 [num_microbatches, micro_batch_size, sequence_length], index one past the last position that
            sees this one: key k is visible to query q when k <= q < ends[k]. None: every position sees all before it.
            The loss is over all targets all the same: a document's last token is trained to end it.
        weights_MBS: float32 [num_microbatches, micro_batch_size, sequence_length], factor of each target's loss; the
            mean over the global batch is what is trained on. None: one for each.
    """

    tokens_MBT: np.ndarray
    first_sample: int
    num_samples: int
    source_tokens: dict[str, int]
    ends_MBS: np.ndarray | None = None
    weights_MBS: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did; the same on every rank.

    Attributes:
        loss: mean cross entropy in nats per token over the global batch, before the update; with weights on targets
            the weighted mean.
        tokens: tokens of the global batch.
        grad_norm: global L2 norm of the gradient before clipping.
        skipped: the update was not applied (loss or gradient not finite).
        z_loss: mean z-loss per token, which is differentiated beside the loss but not part of it; None where off.
        dynamics: figures per layer of an observed step, under the names of `pretrain.track.names`.
    """

    loss: float
    tokens: int
    grad_norm: float
    skipped: bool = False
    z_loss: float | None = None
    dynamics: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class PendingStep:
    """An optimizer step that was given to the device, whose result can be read when it is wanted.

    Attributes:
        tokens: tokens of the global batch.
        result: what the step did; waits until the device has done it.
        late: whether the device may still be at it, so that the next step is better given to it before this one's
            result is read.
    """

    tokens: int
    result: Callable[[], StepResult]
    late: bool = False

    @classmethod
    def done(cls, result: StepResult) -> PendingStep:
        """A step whose result is there already."""
        return cls(tokens=result.tokens, result=lambda: result)


@dataclass(slots=True)
class PackedRow:
    """One forward-only row: a shared prefix, then `num_blocks` blocks of `block_length` tokens, then padding.

    Key k is visible to query q when k ≤ q < end[k]; a block sees the whole prefix and nothing of other blocks.
    All arrays are over the row's S = prefix + num_blocks · block_length (+ padding) tokens.

    Attributes:
        prefix: length of the shared prefix (causal), may be 0.
        num_blocks: number of blocks, may be 0.
        block_length: tokens per block.
        tokens_S: int32 token ids.
        positions_S: int32 position (RoPE) of each token.
        ends_S: int32 index one past the last token that sees this one; 0 marks padding.
        num_real_tokens: tokens that are not padding.
        wanted_W: int64 indices into the row whose next-token distribution is wanted, ascending.
        pair_wanted_P: int64 index into `wanted_W` of each (position, target) pair.
        pair_target_P: int64 target token id of each pair.
        pair_id_P: int64 global id of each pair; every id occurs in exactly one row.
    """

    prefix: int
    num_blocks: int
    block_length: int
    tokens_S: np.ndarray
    positions_S: np.ndarray
    ends_S: np.ndarray
    num_real_tokens: int
    wanted_W: np.ndarray
    pair_wanted_P: np.ndarray
    pair_target_P: np.ndarray
    pair_id_P: np.ndarray


@dataclass(slots=True)
class PackedRows:
    """Work for `Engine.score`: identical on every rank.

    Attributes:
        rows: the rows, of any length: the engine adds the padding that its layout needs.
        num_pairs: number of (position, target) pairs over all rows; ids are 0 … num_pairs - 1.
        digest: hash over all arrays, compared over ranks before scoring starts.
    """

    rows: list[PackedRow]
    num_pairs: int
    digest: str


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Answer to `PackedRows`, the same bits on every rank.

    Attributes:
        log_prob_P: float64 [num_pairs], natural log-probability of each pair's target.
        is_greedy_P: bool [num_pairs], whether the target is the argmax over the true vocabulary.
    """

    log_prob_P: np.ndarray
    is_greedy_P: np.ndarray


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to be continued by the likeliest token, again and again.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: new tokens at most, at least 1.
        stop_ids: the first of these ends the answer, as its last token.
        is_done: asked after each new token, with all new ids; whether the answer ends here. It must say the same on
            every rank. None: never.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    is_done: Callable[[Sequence[int]], bool] | None = None


class Scorer(Protocol):
    """Anything that can score packed rows: a live engine, or a model read from a checkpoint."""

    def score(self, rows: PackedRows) -> TokenLogProbs:
        """Forward only; every rank calls it with the same rows and gets the same bits."""
        ...


class Generator(Protocol):
    """Anything that can continue prompts; the model is left as it was."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Greedy; every rank calls it with the same requests and gets the same new ids of each."""
        ...


class CheckpointScorer(Scorer, Generator, Protocol):
    """A model without optimizer, for scoring weights that lie on disk. Every method is called by every rank."""

    def load(self, source: TensorSource) -> None:
        """Replaces all weights in place; `score` is allowed after the first. No rank waits for another here.

        Raises:
            CheckpointError: missing or damaged tensors; load others before scoring again.
        """
        ...

    def close(self) -> None:
        """Releases process groups."""
        ...


class ShardedState(Protocol):
    """This rank's part of fp32 weights and moments, as views that checkpoints stage from and load into."""

    def chunks(self) -> Iterable[Chunk]:
        """Flat ranges this rank is the one to write; together over ranks every element exactly once."""
        ...

    def optimizer_step(self) -> int:
        """Updates applied so far, as Adam's bias correction counts them; 0 on a rank without parameters."""
        ...

    def load(self, reader: CheckpointReader) -> None:
        """Fills master weights, moments, optimizer step and model weights from a checkpoint of any layout."""
        ...

    def start_from(self, source: TensorSource) -> None:
        """Fills weights alone; moments and optimizer step start at zero."""
        ...


class Engine(Scorer, Generator, Protocol):
    """A model, its optimizer and its process groups. Every method is called by every rank."""

    def train_step(self, batch: Batch, learning_rate: float, *, observe: bool = False) -> PendingStep:
        """Forward, backward and update over all microbatches of one step; does not wait for a device to do them.

        Args:
            batch: this data-parallel rank's share.
            learning_rate: of the update.
            observe: also fill `StepResult.dynamics`; weights come out bitwise the same. The same on every rank.
        """
        ...

    def fp8_loss_gap(self) -> float | None:
        """Loss of training passes in fp8 minus that in bf16, over the last step's batch with the weights of now.

        Nats per token, the same on every rank. None where nothing is multiplied in fp8, or no step was taken yet.
        """
        ...

    def sharded_state(self) -> ShardedState:
        """Weights, moments and where each piece belongs in the whole model."""
        ...

    def describe(self) -> dict[str, Any]:
        """Layout and software versions, for manifests."""
        ...

    def records(self) -> Mapping[str, str]:
        """Texts to keep in the run's directory, by file name: what the engine made of the configuration."""
        ...

    def close(self) -> None:
        """Releases process groups."""
        ...
