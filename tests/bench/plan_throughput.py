"""What `pretrain.plan` predicts of published throughput: every row of `published_throughput.yaml`, one after the other.

`python -m tests.bench.plan_throughput --json FILE [--table]` needs no quiet machine: nothing is timed. A row counts as
held out unless it set a constant; errors are predicted over published tokens per second, minus one. `--table` prints
all rows; what the README holds is one line for each publisher.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.plan.throughput import predict
from tests.bench.published.throughput import PublishedRow, published_rows
from tests.bench.result import describe_machine, package_versions, write_result

LIMIT = 0.15
"""Largest error that counts as predicted."""


def measure() -> dict[str, Any]:
    """Predicts all rows; the figures of the result file."""
    published = published_rows()
    rows = [_predicted(row) for row in published]
    held_out = [abs(row["error"]) for row in rows if row["calibrates"] is None]
    return {
        "held_out": len(held_out),
        "within_15_percent": sum(error <= LIMIT for error in held_out),
        "median_abs_error": statistics.median(held_out),
        "max_abs_error": max(held_out),
        "groups": {row.group: {"source": row.source, "assumed": row.assumed} for row in published},
        "rows": rows,
    }


def _predicted(row: PublishedRow) -> dict[str, Any]:
    found = predict(row.workload, row.cluster)
    devices = row.workload.devices
    return {
        "group": row.group,
        "model": row.model,
        "device": row.cluster.device,
        "devices": devices,
        "layout": _layout(row),
        "published": row.tokens_per_second / devices,
        "predicted": found.tokens_per_second / devices,
        "error": found.tokens_per_second / row.tokens_per_second - 1,
        "calibrates": row.calibrates,
    }


def _layout(row: PublishedRow) -> str:
    """What tells rows of one model apart, in words."""
    work = row.workload
    sizes = {"TP": work.tensor, "PP": work.pipeline, "CP": work.context}
    words = [f"{work.sequence_length:,}", *(f"{name}{size}" for name, size in sizes.items() if size > 1)]
    words += [] if work.recompute == "none" else [f"recompute {work.recompute}"]
    words += [] if work.fused else ["not fused"]
    words += ["TP overlapped"] if work.overlap_tensor else []
    return ", ".join(words)


def readme(figures: Mapping[str, Any]) -> str:
    """What stands in the README between its markers."""
    lines = ["| published by | devices | figures | within 15 % | median, worst error | source |", "|---" * 6 + "|"]
    for name, group in figures["groups"].items():
        rows = [row for row in figures["rows"] if row["group"] == name]
        guessed = f" (assumed: {group['assumed']})" if group["assumed"] else ""
        lines.append(f"| {name} | {_devices(rows)} | {_errors(rows)} | {group['source']}{guessed} |")
    calibrating = "; ".join(_words(row) for row in figures["rows"] if row["calibrates"] is not None)
    summary = (
        f"Of {figures['held_out']} figures that set no constant {figures['within_15_percent']} are within 15 %, half "
        f"of them within {100 * figures['median_abs_error']:.0f} %. Set by a figure: {calibrating}."
    )
    return "\n".join([*lines, "", summary])


def _devices(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({row["devices"] for row in rows})
    spread = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{spread} {', '.join(dict.fromkeys(_short(row['device']) for row in rows))}"


def _errors(rows: Sequence[Mapping[str, Any]]) -> str:
    errors = sorted((row["error"] for row in rows if row["calibrates"] is None), key=abs)
    within = sum(abs(error) <= LIMIT for error in errors)
    return f"{len(errors)} | {within} | {100 * statistics.median(map(abs, errors)):.0f} %, {100 * errors[-1]:+.0f} %"


def _short(device: str) -> str:
    return device.removeprefix("NVIDIA ").removeprefix("Google ").replace("-SXM4-", " ").replace("-SXM5-", " ")


def _words(row: Mapping[str, Any]) -> str:
    where = f"{row['group']}, {row['model']} on {row['devices']} devices, {row['published']:,.0f} tokens/s each"
    return f"{row['calibrates']} ({where})"


def table(figures: Mapping[str, Any]) -> Iterator[str]:
    """All rows."""
    yield "| group | model | devices | layout | tokens/s a device | predicted | error | |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in figures["rows"]:
        assumed = figures["groups"][row["group"]]["assumed"]
        note = "calibrates" if row["calibrates"] else "partly assumed" if assumed else ""
        yield (
            f"| {row['group']} | {row['model']} | {row['devices']:,} {_short(row['device'])} | {row['layout']} | "
            f"{row['published']:,.0f} | {row['predicted']:,.0f} | {100 * row['error']:+.1f} % | {note} |"
        )


def main() -> None:
    """Predicts, writes the file, and prints what the README holds, or all rows."""
    parser = argparse.ArgumentParser("python -m tests.bench.plan_throughput", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print all rows")
    line = parser.parse_args()
    found = write_result(
        line.json,
        name="plan_throughput",
        figures=measure(),
        command=f"python -m tests.bench.plan_throughput --json {line.json}",
        machine=describe_machine(threads=1),
        versions=package_versions(["fineline"]),
    )
    print("\n".join(table(found["figures"])) if line.table else readme(found["figures"]))


if __name__ == "__main__":
    main()
