"""Megatron's output layer, able to end in the loss, so that logits of a whole microbatch need not exist.

The loss is computed inside of the layer's own forward because hooks hang there: Megatron's DDP waits in them for
weights that are still being gathered, ZeRO-3 gathers and releases them. The layer holds no state of its own, so one
that Megatron built becomes this one by its class and two attributes:

    chunk.output_layer.__class__ = OutputLayer
    chunk.output_layer.true_vocab_size, chunk.output_layer.z_loss = spec.vocab_size, config.optimizer.z_loss
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from pretrain.model.layers.loss import linear_cross_entropy


class OutputLayer(ColumnParallelLinear):
    """Hidden states to logits, or with labels to losses.

    Attributes:
        true_vocab_size: rows of the whole vocabulary that are not padding.
        z_loss: coefficient of log(Z)².
    """

    true_vocab_size: int
    z_loss: float = 0.0

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        labels: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Megatron's forward without labels. Every rank of the tensor-parallel group calls it.

        Args:
            input_: [S, B, H]; this rank's part of S with sequence parallelism.
            weight: [V / tensor parallel, H], the embedding's, where it is tied.
            runtime_gather_output: as Megatron has it, for logits only.
            labels: int64 [B, S], all of S, in the whole vocabulary, never padding.

        Returns:
            Without labels logits and bias as Megatron gives them. With labels what
            `LlamaModel.compute_language_model_loss` gives, and None: fp32 [B, S], nats; with z-loss [2, B, S]: cross
            entropy, then coefficient · log(Z)².
        """
        if labels is None:
            return super().forward(input_, weight, runtime_gather_output)
        if weight is None:
            weight = self.weight
        # Each rank's gradient of the hidden states is of its own part of the vocabulary: backward adds them up.
        if self.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(
                input_, tensor_parallel_output_grad=True, group=self.tp_group
            )
        else:
            hidden_SBH = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        kernels, part = self.config.kernels, self.output_size_per_partition
        loss_SB, log_z_SB = linear_cross_entropy(
            hidden_SBH,
            weight,
            labels.T,
            vocab_size_here=max(0, min(part, self.true_vocab_size - self.tp_group.rank() * part)),
            group=self.tp_group,
            compiled=kernels.compile,
            accumulate_into_main_grad=kernels.weight_gradients == "accumulated",
        )
        if not self.z_loss:
            return loss_SB.T.contiguous(), None
        return torch.stack([loss_SB.T, self.z_loss * log_z_SB.T.square()]), None
