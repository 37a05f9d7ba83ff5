"""An export is the live model: same log-probabilities in transformers, whatever layout the model lived in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.export_workers import INITIAL, tokens
from tests.parity.workers import VOCAB, Layout
from tests.support.ranks import run_ranks

LAYOUTS = {
    1: [
        Layout("one process"),
        Layout("one process tied", tie_embeddings=True),
    ],
    2: [
        Layout("DP2"),
        Layout("TP2+SP", tensor=2, sequence=True),
        Layout("TP2+SP tied", tensor=2, sequence=True, tie_embeddings=True),
        Layout("PP2", extra={"pipeline": 2}),
        Layout("PP2 tied", tie_embeddings=True, extra={"pipeline": 2}),
        Layout("PP2xVPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("CP2", extra={"context": 2}),
        Layout("ZeRO-3 tied", zero=3, tie_embeddings=True),
        Layout("DP2 bf16", compute="bf16"),
    ],
}
EVERY = [layout for layouts in LAYOUTS.values() for layout in layouts]
NAMES = [layout.name for layout in EVERY]
FP32 = [layout.name for layout in EVERY if layout.compute == "fp32"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def exported(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Per layout the results of its ranks; the exports lie in `root`."""
    found = {}
    tokenizer = _train_tokenizer(root / "tokenizer.model")
    for world_size, layouts in LAYOUTS.items():
        ranks = run_ranks("tests.parity.export_workers:export", world_size, (layouts, root, tokenizer))
        for index, layout in enumerate(layouts):
            found[layout.name] = [rank[index] for rank in ranks]
    return found


def _train_tokenizer(path: Path) -> Path:
    """A tokenizer of exactly the models' vocabulary; what it says does not matter."""
    import sentencepiece

    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(3000)]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(words[at : at + 10]) for at in range(0, len(words), 10)]),
            model_writer=file,
            model_type="bpe",
            vocab_size=VOCAB,
            byte_fallback=True,
            normalization_rule_name="identity",  # of others transformers' ids are not always those of training
            minloglevel=2,
        )
    return path


def _loaded_log_probs(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens())).logits.double().log_softmax(-1).numpy()


@pytest.mark.parametrize("name", FP32)
def test_transformers_gives_every_log_probability_of_the_live_model(name: str, root: Path, exported: Any) -> None:
    expected = _loaded_log_probs(root / name / "first" / "export")
    assert expected.std() > 0.1  # the model has something to say
    for rank in exported[name]:
        np.testing.assert_allclose(rank["first"]["log_probs"], expected, rtol=0, atol=1e-5)  # fp32 sum order


@pytest.mark.parametrize("name", FP32)
def test_the_gate_measures_it_within_the_training_process(name: str, exported: Any) -> None:
    for turn in ("first", "again"):
        parity = exported[name][0][turn]["parity"]
        assert parity.largest_difference <= 1e-5 <= parity.tolerance


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FP32)))
def test_bf16_compute_is_within_its_rounding(name: str, root: Path, exported: Any) -> None:
    parity = exported[name][0]["first"]["parity"]
    assert 1e-4 < parity.largest_difference < parity.tolerance / 2
    expected = _loaded_log_probs(root / name / "first" / "export")
    assert np.abs(exported[name][0]["first"]["log_probs"] - expected).max() < parity.tolerance


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_started_with_the_export_is_the_same_model_bitwise(name: str, root: Path, exported: Any) -> None:
    for rank in exported[name]:
        assert np.array_equal(rank["first"]["log_probs"], rank["again"]["log_probs"])
        assert rank["first"]["reference"] == rank["again"]["reference"] == exported[name][0]["first"]["reference"]
    first, again = (
        {path.name: path.read_bytes() for path in (root / name / turn / "export").glob("*.safetensors")}
        for turn in ("first", "again")
    )
    assert first and first == again


@pytest.mark.parametrize("name", INITIAL[1:])
def test_a_release_of_the_same_weights_is_the_same_bytes_in_every_layout(name: str, root: Path, exported: Any) -> None:
    assert name in exported
    layout, alone = (
        {path.name: path.read_bytes() for path in (root / folder / "initial/export").iterdir()}
        for folder in (name, INITIAL[0])
    )
    assert layout.pop("README.md") and alone.pop("README.md")  # the card says where weights come from
    assert "model.safetensors" in layout and layout == alone
