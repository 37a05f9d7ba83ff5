"""What a run is, as data: one dataclass per group, no torch. `load` composes it, `checks` judges it."""
