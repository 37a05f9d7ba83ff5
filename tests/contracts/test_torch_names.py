"""What we use of torch that is not public: each must still be there, and take and give what we think."""

from __future__ import annotations

import pytest
import torch

# (operator, its arguments as we pass them, why we need it)
PRIVATE = [
    (
        "_scaled_dot_product_flash_attention",
        ["query", "key", "value", "dropout_p", "is_causal"],
        "the log-sum of exponentials, by which scoring merges a prefix and blocks; public attention keeps it to itself",
    ),
    (
        "_scaled_dot_product_efficient_attention",
        ["query", "key", "value", "attn_bias", "compute_log_sumexp", "dropout_p", "is_causal"],
        "the same in fp32 and with a bias",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "reason"), PRIVATE, ids=[entry[0] for entry in PRIVATE])
def test_torch_still_has(name: str, arguments: list[str], reason: str) -> None:
    schema = getattr(torch.ops.aten, name).default._schema
    names = [argument.name for argument in schema.arguments]
    assert names[: len(arguments)] == arguments, reason
    assert "scale" in names
    assert [returned.name.replace("_", "") for returned in schema.returns[:2]] == ["output", "logsumexp"], reason
