import math

import pytest
import torch

from pretrain.checkpoint.blocks import Block
from pretrain.config.model import ModelConfig
from pretrain.engine.initialize import initialize

KEYS = {
    "decoder.layers.0.self_attention.linear_qkv.weight": False,
    "decoder.layers.0.self_attention.linear_proj.weight": True,
    "decoder.layers.0.mlp.linear_fc1.weight": False,
    "decoder.layers.0.mlp.linear_fc2.weight": True,
    "output_layer.weight": False,
}


def weights(**settings) -> dict[str, torch.Tensor]:
    found = {}
    for key in KEYS:
        found[key] = torch.nn.Parameter(torch.empty(400, 300))
        block = Block(key=key, global_shape=(400, 300), offset=(0, 0), shape=(400, 300))
        initialize({found[key]: [block]}, ModelConfig(num_layers=8, **settings), seed=5)
    return {key: parameter.data for key, parameter in found.items()}


def test_every_matrix_has_the_same_deviation_as_in_hugging_face() -> None:
    for weight in weights().values():
        # 120,000 draws: their deviation is within 1 % of 0.02 but for chances of 1e-6.
        assert float(weight.std()) == pytest.approx(0.02, rel=0.01)


def test_depth_scaling_divides_what_ends_in_the_residual_stream_and_nothing_else() -> None:
    plain, scaled = weights(), weights(init_depth_scaled=True)
    for key, is_scaled in KEYS.items():
        factor = 1 / math.sqrt(2 * 8) if is_scaled else 1.0
        torch.testing.assert_close(scaled[key], plain[key] * factor, rtol=1e-6, atol=0)
