"""Published throughput as workloads and clusters, to hold `pretrain.plan.throughput` against.

Reads `published_throughput.yaml`, and the table beside it that one of its groups names.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.cluster import ClusterConfig
from pretrain.config.load import config_folder
from pretrain.plan.workload import Shape, Workload

PUBLISHED = Path(__file__).with_name("published_throughput.yaml")
"""Numbers of papers and of repositories' tables, with their sources."""

_PER_DEVICE = "tokens_per_second_per_device"
_ROW_ONLY = {"model", "devices", "per_node", "cluster", "cluster_values", "figure", "calibrates"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One published figure.

    Attributes:
        group: who published it.
        source: where.
        model: name of the model.
        workload: what was run.
        cluster: on what.
        tokens_per_second: of the whole job; computed, where the source gives TFLOP/s, by its own definition.
        calibrates: the constant that was set by this row, or None: then the row is predicted.
        assumed: what the source does not say and was guessed, or None.
    """

    group: str
    source: str
    model: str
    workload: Workload
    cluster: ClusterConfig
    tokens_per_second: float
    calibrates: str | None
    assumed: str | None


def published_rows() -> list[PublishedRow]:
    """All rows of the shipped file, in its order."""
    import yaml

    document = yaml.safe_load(PUBLISHED.read_text("utf-8"))
    models = {name: _shape(sizes) for name, sizes in document["models"].items()}
    return [row for group in document["groups"] for row in _group(group, models)]


def _group(group: Mapping[str, Any], models: Mapping[str, Shape]) -> Iterator[PublishedRow]:
    common = group["common"]
    for given in group["rows"] if "rows" in group else _table(group):
        row = {**common, **given}
        row["cluster_values"] = {**common.get("cluster_values", {}), **given.get("cluster_values", {})}
        workload = _workload(row, models[row["model"]])
        cluster = _cluster(row)
        yield PublishedRow(
            group=group["name"],
            source=group["source"],
            model=row["model"],
            workload=workload,
            cluster=cluster,
            tokens_per_second=_speed(row["figure"], workload, cluster),
            calibrates=row.get("calibrates"),
            assumed=group.get("assumed"),
        )


def _table(group: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The group's rows of a table: those of its cluster."""
    calibrates = dict(group.get("calibrates", {}))
    constant = calibrates.pop("constant", None)
    with PUBLISHED.with_name(group["rows_from"]).open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["cluster"] != group["common"]["cluster"]:
                continue
            row: dict[str, Any] = {name: int(text) if text.isdecimal() else text for name, text in line.items()}
            row["cluster_values"] = {"attention_share": float(row.pop("attention_share"))}
            row["figure"] = {_PER_DEVICE: float(row.pop(_PER_DEVICE))}
            same = all(row[name] == value for name, value in calibrates.items())
            yield {**row, "calibrates": constant if same else None}


def _shape(sizes: list[Any]) -> Shape:
    names = [field.name for field in dataclasses.fields(Shape)]
    return Shape(**dict(zip(names, sizes, strict=True)))


def _workload(row: Mapping[str, Any], shape: Shape) -> Workload:
    settings = {name: value for name, value in row.items() if name not in _ROW_ONLY}
    others = row.get("tensor", 1) * row.get("pipeline", 1) * row.get("context", 1)
    return Workload(shape=shape, data=row["devices"] // others, **{"num_microbatches": 1, **settings})


def _cluster(row: Mapping[str, Any]) -> ClusterConfig:
    values = _device(row["cluster"])
    machines = {"processes_per_node": row["per_node"], "nodes": -(-row["devices"] // row["per_node"])}
    return ClusterConfig(**{**values, **machines, **row["cluster_values"]})


@functools.cache
def _device(name: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((config_folder() / "cluster" / f"{name}.yaml").read_text("utf-8"))


def _speed(figure: Mapping[str, float], workload: Workload, cluster: ClusterConfig) -> float:
    """Tokens per second of the job, from the figure as it was published."""
    ((kind, value),) = figure.items()
    if kind == _PER_DEVICE:
        return value * workload.devices
    shape = workload.shape
    layers, output = shape.num_layers * shape.layer_parameters, shape.output_parameters
    scores = shape.num_layers * shape.hidden_size * workload.sequence_length
    flops = {
        "teraflops_causal": 6 * layers + 6 * scores + 6 * output,  # Megatron-LM since 2023
        "teraflops_recomputed": 8 * layers + 16 * scores + 6 * output,  # arXiv 2104.04473, section 3.2
        "mfu_full_attention": 6 * layers + 12 * scores + 6 * output,  # arXiv 2205.05198, appendix A
    }[kind]
    rate = value * 1e12 if kind.startswith("teraflops") else value * (cluster.peak_teraflops or 0.0) * 1e12
    return rate * workload.devices / flops
