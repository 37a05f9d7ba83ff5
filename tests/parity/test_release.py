"""A release is a function of the weights: the layout that held them, and the optimizer beside them, leave no trace.

`test_export.py` has two processes of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.checkpoint.blocks import WEIGHTS_ONLY
from pretrain.checkpoint.huggingface import export_checkpoint
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.retain import retain
from tests.parity.test_export import _train_tokenizer
from tests.parity.workers import Layout
from tests.support.ranks import run_ranks


@pytest.mark.slow
def test_a_weights_only_release_of_tp2_x_pp2_is_bitwise_that_of_one_process(tmp_path: Path) -> None:
    tokenizer = _train_tokenizer(tmp_path / "tokenizer.model")
    layout = Layout("TP2xPP2", tensor=2, extra={"pipeline": 2})
    run_ranks("tests.parity.release_workers:save_initial", 4, (layout, tmp_path / "many"))
    run_ranks("tests.parity.release_workers:save_initial", 1, (Layout("one process"), tmp_path / "one"))
    for dtype in ("float32", "bfloat16"):
        released = {}
        for name in ("many", "one"):
            (reduced,) = retain(tmp_path / name, keep=1) or [tmp_path / name / "step_00000000"]
            reader = CheckpointReader(reduced)
            assert reader.manifest.kinds == WEIGHTS_ONLY and not list(reduced.glob("exp_avg*"))
            out = tmp_path / name / dtype / "release"  # the card says its name
            assert export_checkpoint(reader, out, tokenizer_model=tokenizer, dtype=dtype).parity is not None
            released[name] = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "README.md"}
        assert "model.safetensors" in released["one"] and "SHA256SUMS" in released["one"]
        assert released["many"] == released["one"]
    card = (tmp_path / "many/bfloat16/release/README.md").read_text()
    assert "| tensor | 2 |" in card and "| pipeline | 2 |" in card
