"""What this card attains in matrix products, measured in the run that it is compared with.

bf16 on normal random data (zeros run faster and prove nothing): 8,192³, the usual yardstick, and a model's products as
they occur in training (forward, gradient of the input, gradient of the weight) at one micro-batch's tokens. Called as
`python -m tests.bench.gpu.gemm FOLDER` like a contender, so that its memory is given back.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.gpu.task import Shape


def products(shape: Shape, tokens: int) -> dict[str, tuple[int, int, int, int]]:
    """The model's Linear layers: (tokens, inputs, outputs, how often in a pass), by name."""
    hidden, head = shape.hidden_size, shape.hidden_size // shape.num_attention_heads
    layers = shape.num_layers
    return {
        "qkv": (tokens, hidden, hidden + 2 * shape.num_query_groups * head, layers),
        "attention_output": (tokens, hidden, hidden, layers),
        "gate_and_up": (tokens, hidden, 2 * shape.ffn_hidden_size, layers),
        "down": (tokens, shape.ffn_hidden_size, hidden, layers),
        "output": (tokens, hidden, shape.vocab_size, 1),
    }


def measure(*, cube: int, shapes: dict[str, tuple[Shape, int]], repeats: int) -> dict[str, Any]:
    """FLOP/s of the cube, and of each model's products.

    Args:
        cube: rows, columns and depth of the yardstick.
        shapes: sizes and tokens of a micro-batch, by the model's name.
        repeats: timed products of each kind; the median counts.

    Returns:
        `peak_flops_per_second`; by model, FLOP/s of each product (`forward`, `input_gradient`, `weight_gradient`) and
        of all together, weighted as in a step.
    """
    found: dict[str, Any] = {"cube": cube, "peak_flops_per_second": _rate(cube, cube, cube, "forward", repeats)}
    for name, (shape, tokens) in shapes.items():
        rates, work, seconds = {}, 0.0, 0.0
        for layer, (rows, inputs, outputs, count) in products(shape, tokens).items():
            for kind in ("forward", "input_gradient", "weight_gradient"):
                rate = rates[f"{layer}_{kind}"] = _rate(rows, inputs, outputs, kind, repeats)
                work += count * 2.0 * rows * inputs * outputs
                seconds += count * 2.0 * rows * inputs * outputs / rate
        found[name] = {"tokens": tokens, "flops_per_second": work / seconds, "products": rates}
    return found


def _rate(rows: int, inputs: int, outputs: int, kind: str, repeats: int) -> float:
    """FLOP/s of one product of a Linear layer with weight [outputs, inputs] over `rows` tokens."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device, dtype=torch.bfloat16)

    x, weight, gradient = drawn(rows, inputs), drawn(outputs, inputs), drawn(rows, outputs)
    multiply = {
        "forward": lambda: x @ weight.T,
        "input_gradient": lambda: gradient @ weight,
        "weight_gradient": lambda: gradient.T @ x,
    }[kind]
    for _ in range(3):
        multiply()
    seconds = []
    for _ in range(repeats):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            multiply()
            end.record()
            end.synchronize()
            seconds.append(1e-3 * start.elapsed_time(end))
        else:
            begun = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - begun)
    return 2.0 * rows * inputs * outputs / statistics.median(seconds)


def main() -> None:
    """Entry of the process: `task.json` in the folder becomes `result.json`."""
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "task.json").read_text())
    shapes = {name: (Shape(**one["shape"]), one["tokens"]) for name, one in asked["shapes"].items()}
    found = measure(cube=asked["cube"], shapes=shapes, repeats=asked["repeats"])
    (folder / "result.json").write_text(json.dumps({"status": "measured", **found}))


if __name__ == "__main__":
    main()
