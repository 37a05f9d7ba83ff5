"""What the contenders of `step_overhead` share: the shapes, the bare loop, and the clock.

Imports torch alone, so that it also runs in the environment of a peer. A contender is a process that measures a
framework's own training loop and a bare loop over the same kind of model, step by step in turn: their difference is
what the framework costs, however fast its model is.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A small Llama and its optimizer step, the same for every contender."""

    num_layers: int = 2
    hidden_size: int = 128
    ffn_hidden_size: int = 352
    num_attention_heads: int = 4
    vocab_size: int = 1024
    sequence_length: int = 128
    micro_batch_size: int = 2
    num_microbatches: int = 2
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.num_microbatches

    def adamw(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
        """Torch's AdamW with its own choice of kernel (on CPU one tensor at a time), as Megatron and peers take it."""
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
        )

    def tokens(self, num_steps: int) -> torch.Tensor:
        """Random ids, int64 [num_steps, num_microbatches, micro_batch_size, sequence_length + 1]."""
        generator = torch.Generator().manual_seed(0)
        shape = (num_steps, self.num_microbatches, self.micro_batch_size, self.sequence_length + 1)
        return torch.randint(0, self.vocab_size, shape, generator=generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one process measures: untimed steps, then timed ones."""

    warmup_steps: int
    steps: int

    @property
    def total_steps(self) -> int:
        return self.warmup_steps + self.steps


class BareLoop:
    """Forward, backward, clip, AdamW over data in memory, and nothing else; one step per call.

    Args:
        model: trained in place.
        shape: of the step.
        loss_of: [B, S + 1] ids to the microbatch's mean loss.
    """

    def __init__(self, model: torch.nn.Module, shape: Shape, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._parameters = list(model.train().parameters())
        self._optimizer = shape.adamw(self._parameters)
        self._batches = itertools.cycle(shape.tokens(64))
        self._loss_of, self._shape = loss_of, shape

    def step(self) -> None:
        self._optimizer.zero_grad()
        for tokens_BT in next(self._batches):
            (self._loss_of(tokens_BT) / self._shape.num_microbatches).backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._shape.grad_clip)
        self._optimizer.step()


class Clock:
    """Interleaves the two loops step by step and times both.

    Torch's hook after every optimizer update ends a step of the framework, runs one of the bare loop, and begins the
    framework's next: whatever else the machine does, and the state of its caches, meets both alike. CPU time is that
    of all threads of the process, so that work moved to another thread still counts.
    """

    def __init__(self, bare: BareLoop) -> None:
        self._bare, self._inside = bare, False
        self._begun: tuple[float, float] | None = None
        self.rows: list[dict[str, list[float]]] = []
        register_optimizer_step_post_hook(self._after_update)

    def _after_update(self, *_: Any) -> None:
        if self._inside:
            return
        ended = _now()
        self._inside = True
        with torch.enable_grad():
            self._bare.step()
        self._inside = False
        resumed = _now()
        if self._begun is not None:
            self.rows.append({"framework": _milliseconds(self._begun, ended), "bare": _milliseconds(ended, resumed)})
        self._begun = resumed


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _milliseconds(begun: tuple[float, float], ended: tuple[float, float]) -> list[float]:
    return [1e3 * (after - before) for before, after in zip(begun, ended, strict=True)]


Build = Callable[[Shape, Plan, Path], tuple[Callable[[], None], BareLoop]]
"""What a contender gives: its framework's training of `Plan.total_steps` steps, and its bare loop."""


def main(build: Build, versions: Callable[[], dict[str, Any]]) -> None:
    """Entry of a contender's process: reads its job, measures, writes `rows.json` into the job's folder.

    A row is one pair of steps: [wall, CPU] milliseconds of the framework's and of the bare loop's.
    """
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    shape, plan = Shape(**job["shape"]), Plan(**job["plan"])
    train, bare = build(shape, plan, folder)
    clock = Clock(bare)
    train()
    assert len(clock.rows) == plan.total_steps - 1, f"{len(clock.rows)} pairs in {plan.total_steps} steps"
    rows = clock.rows[plan.warmup_steps - 1 :]
    (folder / "rows.json").write_text(json.dumps({"rows": rows, "versions": versions()}))
