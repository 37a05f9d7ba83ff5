"""What a run will need, before it has a machine: see `pretrain.plan.plan`, and `python -m pretrain.plan --help`."""
