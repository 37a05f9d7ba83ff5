"""The cluster group: device descriptions keep to what an experiment asked for, and their numbers are judged."""

from __future__ import annotations

import pytest

from pretrain.config.checks import check
from pretrain.config.load import compose, config_folder
from pretrain.errors import ConfigError

DEVICES = sorted(path.stem for path in (config_folder() / "cluster").glob("*.yaml") if path.stem != "local")


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_keeps_the_machines_that_the_experiment_asks_for(device: str) -> None:
    cluster = compose(["experiment=amber_7b", f"cluster={device}"]).cluster
    assert (cluster.nodes, cluster.processes_per_node) == (56, 4)
    assert cluster.device is not None
    assert cluster.peak_teraflops is not None


BAD = {
    "cluster.matmul_share=1.2": "above 0 and at most 1",
    "cluster.link_share=0": "above 0 and at most 1",
    "cluster.peak_teraflops=-1": "above 0 and finite",
    "cluster.memory_gib=inf": "above 0 and finite",
    "cluster.tokens_per_second_per_device=0": "above 0 and finite",
    "cluster.network_latency_microseconds=-2": "at least 0",
}


def test_numbers_that_no_machine_has_are_refused_by_name_and_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose(["experiment=amber_7b", "cluster=h100", *BAD]))
    problems = [line for line in caught.value.problems if line.startswith("cluster.")]
    assert len(problems) == len(BAD)
    for override, message in BAD.items():
        assert any(line.startswith(override.partition("=")[0] + "=") and message in line for line in problems)
