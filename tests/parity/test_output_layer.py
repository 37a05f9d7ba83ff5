"""The output layer that ends in the loss against Megatron's, over tensor-parallel ranks; and entropy observed at it.

The oracle is torch's F.cross_entropy in float64 on one process.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.ranks import run_ranks

VOCAB, PADDED, HIDDEN = 61, 192, 16
"""Of two ranks the first has 61 real rows and 3 more that are computed; the second has padding alone."""
WIDE = 130
"""A vocabulary of which the second rank has 34 rows."""
LENGTH, BATCH = 152, 4
"""608 tokens: chunks of 256, 256 and 96."""
Z_LOSS = 1e-2


def inputs(vocab: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    weight_VH = torch.randn(PADDED, HIDDEN, generator=generator)
    weight_VH[vocab:] = 50.0  # the winner of most tokens, if padding were looked at
    labels_BS = torch.randint(0, vocab, (BATCH, LENGTH), generator=generator)
    # At the borders: first and last of the vocabulary, last of the first rank, first of the second.
    labels_BS[0, :4] = torch.tensor([0, vocab - 1, min(vocab, PADDED // 2) - 1, PADDED // 2 % vocab])
    return {
        "hidden": torch.randn(LENGTH, BATCH, HIDDEN, generator=generator),
        "weight": weight_VH,
        "labels": labels_BS,
        "factor": torch.rand(2, BATCH, LENGTH, generator=generator),
    }


def losses_of_ranks(cases: list[tuple[int, float, bool, bool]]) -> list[dict[str, Any]]:
    """What ranks run: (vocabulary, z-loss, sequence parallel, tied) through Megatron's layer made into ours."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from megatron.core.transformer import TransformerConfig

    from pretrain.engine.job import Job
    from pretrain.engine.sharded.dynamics import Observer
    from pretrain.model.layers import loss
    from pretrain.model.layers.output import OutputLayer

    loss._CPU_CHUNK_BYTES = 1
    job = Job(timeout_minutes=5)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=job.world_size)
    results = []
    for vocab, z_loss, sequence, tied in cases:
        whole = inputs(vocab)
        config = TransformerConfig(
            num_layers=1,
            hidden_size=HIDDEN,
            num_attention_heads=2,
            tensor_model_parallel_size=job.world_size,
            sequence_parallel=sequence,
            perform_initialization=False,
        )
        config.kernels = SimpleNamespace(compile=False, weight_gradients="plain")
        layer = ColumnParallelLinear(
            HIDDEN,
            PADDED,
            config=config,
            init_method=torch.nn.init.zeros_,
            bias=False,
            skip_weight_param_allocation=tied,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )
        layer.__class__ = OutputLayer
        layer.true_vocab_size, layer.z_loss = vocab, z_loss
        weight = torch.nn.Parameter(whole["weight"].chunk(job.world_size)[job.rank].clone())
        if not tied:
            layer.weight = weight
        hidden = whole["hidden"].chunk(job.world_size)[job.rank] if sequence else whole["hidden"]
        hidden = hidden.clone().requires_grad_()
        chunk = SimpleNamespace(
            config=config,
            post_process=True,
            output_layer=layer,
            decoder=SimpleNamespace(layers=[]),
            parameters=lambda weight=weight: iter([weight]),
        )
        spec, observers = SimpleNamespace(num_layers=0, vocab_size=vocab, tie_embeddings=tied), []
        for labels in (None, whole["labels"]):
            observers.append(Observer([chunk], spec))
            with observers[-1].activations():
                output, bias = layer(hidden, weight=weight if tied else None, labels=labels)
            assert bias is None
        (output * whole["factor"] if z_loss else output * whole["factor"][0]).sum().backward()
        results.append(
            {
                "losses": output.detach(),
                "hidden": hidden.grad,
                "weight": weight.grad,
                "entropies": [observer.figures()["dynamics/output_entropy"] for observer in observers],
            }
        )
    parallel_state.destroy_model_parallel()
    job.close()
    return results


CASES = [
    (VOCAB, 0.0, False, False),
    (VOCAB, Z_LOSS, False, True),
    (WIDE, Z_LOSS, False, False),
    (WIDE, 0.0, False, True),
]
IN_SEQUENCE = [(VOCAB, 0.0, True, True), (WIDE, Z_LOSS, True, False)]


def _agree(case: tuple[int, float, bool, bool], ranks: tuple[dict[str, Any], ...]) -> None:
    vocab, z_loss, sequence, _ = case
    whole = inputs(vocab)
    hidden, weight = (whole[name].double().requires_grad_() for name in ("hidden", "weight"))
    logits_BSV = (hidden @ weight[:vocab].T).transpose(0, 1)
    expected = F.cross_entropy(logits_BSV.transpose(1, 2), whole["labels"], reduction="none")
    if z_loss:
        expected = torch.stack([expected, z_loss * logits_BSV.logsumexp(-1).square()])
    (expected * (whole["factor"] if z_loss else whole["factor"][0])).sum().backward()
    entropy = float(torch.distributions.Categorical(logits=logits_BSV.detach()).entropy().mean())
    for rank in ranks:
        assert torch.equal(rank["losses"], ranks[0]["losses"]), "every rank of the group has the losses"
        # Logits up to 20 of 16 terms each, in fp32.
        torch.testing.assert_close(rank["losses"].double(), expected.detach(), rtol=1e-5, atol=1e-5)
        assert rank["entropies"] == pytest.approx([entropy] * 2, rel=1e-6), "at logits, at losses"
    found = {"weight": torch.cat([rank["weight"] for rank in ranks])}
    found["hidden"] = torch.cat([rank["hidden"] for rank in ranks]) if sequence else ranks[0]["hidden"]
    for name, exact in (("weight", weight.grad), ("hidden", hidden.grad)):
        assert (found[name] - exact).abs().max() <= 2e-6 * exact.abs().max(), name


@pytest.mark.parametrize(
    ("num_ranks", "cases"), [(2, CASES + IN_SEQUENCE), pytest.param(1, CASES, marks=pytest.mark.slow)]
)
def test_losses_gradients_and_entropy_are_those_of_the_whole_vocabulary(num_ranks: int, cases: list[Any]) -> None:
    ranks = run_ranks("tests.parity.test_output_layer:losses_of_ranks", num_ranks, cases)
    for case, per_rank in zip(cases, zip(*ranks, strict=True), strict=True):
        _agree(case, per_rank)
