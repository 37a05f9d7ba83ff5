"""One checkpoint for both engines: saved by Megatron, continued at any ZeRO stage, and back."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.test_checkpoint_layouts import Matrix, continues, continues_bitwise, run_matrix
from tests.parity.workers import Layout

QUICK = {2: [Layout("DP2"), Layout("ZeRO-1", zero=1), Layout("ZeRO-3", zero=3)]}
LAYOUTS = {
    2: [
        *QUICK[2],
        Layout("TP2", tensor=2),
        Layout("ZeRO-0", zero=0),
        Layout("ZeRO-2", zero=2),
        Layout("ZeRO-2, offloaded", zero=2, offload="optimizer"),
        Layout("ZeRO-3, offloaded", zero=3, offload="optimizer and parameters"),
    ],
    4: [Layout("TP2 x ZeRO-1", zero=1, tensor=2)],
}


def _names(layouts_by_size: dict[int, list[Layout]]) -> list[str]:
    return [layout.name for layouts in layouts_by_size.values() for layout in layouts]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return run_matrix(QUICK, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return run_matrix(LAYOUTS, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("target", _names(QUICK))
@pytest.mark.parametrize("source", _names(QUICK))
def test_a_run_continues_under_the_other_engine(source: str, target: str, quick: Matrix) -> None:
    continues(quick, source, target)


@pytest.mark.parametrize("name", _names(QUICK))
def test_the_same_engine_continues_bitwise(name: str, quick: Matrix) -> None:
    continues_bitwise(quick, name)


@pytest.mark.parametrize("source", _names(QUICK))
def test_the_same_weights_score_the_same_bits_under_both_engines(source: str, quick: Matrix) -> None:
    _, resumed = quick
    (expected, *others) = (rank[source]["log_probs"] for ranks in resumed.values() for rank in ranks)
    assert len(others) == 5
    for log_probs in others:
        np.testing.assert_array_equal(log_probs, expected)


@pytest.mark.slow
@pytest.mark.parametrize("target", _names(LAYOUTS))
def test_the_same_weights_score_alike_at_every_stage(target: str, whole: Matrix) -> None:
    _, resumed = whole
    for source in _names(LAYOUTS):
        expected = resumed["DP2"][0][source]["log_probs"]
        for rank in resumed[target]:
            assert rank[source]["log_probs"].mean() == pytest.approx(expected.mean(), rel=1e-6)
            np.testing.assert_allclose(rank[source]["log_probs"], expected, rtol=0, atol=1e-5)  # fp32, about 7 nats


@pytest.mark.slow
@pytest.mark.parametrize("target", _names(LAYOUTS))
@pytest.mark.parametrize("source", _names(LAYOUTS))
def test_a_run_continues_at_another_stage(source: str, target: str, whole: Matrix) -> None:
    continues(whole, source, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", _names(LAYOUTS))
def test_every_stage_continues_bitwise(name: str, whole: Matrix) -> None:
    continues_bitwise(whole, name)
