"""Where a run stands: everything besides weights and moments that a checkpoint must hold.

There is no RNG state to carry: nothing in a run draws from a stream. Initial weights are a function of
(seed, parameter name), sample i of (data config, seed, i), and the model has no dropout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pretrain.errors import CheckpointError


@dataclass(slots=True)
class RunState:
    """Position of a run after `step` optimizer steps.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on, over all ranks.
        samples: sequences consumed; those that `data.skip` leaves out are not counted.
        source_tokens: tokens consumed per source.
        order: what the order of samples has been (`pretrain.data.run_order.OrderHistory`).
        seed: the run's seed.
    """

    seed: int
    step: int = 0
    tokens: int = 0
    samples: int = 0
    source_tokens: dict[str, int] = field(default_factory=dict)
    order: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "seed": self.seed,
            "step": self.step,
            "tokens": self.tokens,
            "samples": self.samples,
            "source_tokens": dict(self.source_tokens),
            "order": dict(self.order),
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Takes over the position of a checkpoint.

        Raises:
            CheckpointError: a field is missing, or the checkpoint was made with another seed.
        """
        missing = {"seed", "step", "tokens", "samples", "source_tokens", "order"} - values.keys()
        if missing:
            raise CheckpointError(f"The checkpoint's run state lacks {sorted(missing)}; it cannot be resumed.")
        if values["seed"] != self.seed:
            raise CheckpointError(
                f"run.seed={self.seed}, but the checkpoint was made with seed {values['seed']}: the sample order "
                f"would change. Set run.seed={values['seed']} or choose another run.name."
            )
        self.step, self.tokens, self.samples = (int(values[k]) for k in ("step", "tokens", "samples"))
        self.source_tokens = {name: int(count) for name, count in values["source_tokens"].items()}
        self.order = dict(values["order"])
