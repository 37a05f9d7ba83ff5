"""Downstream tasks, scored on a live engine or a checkpoint: measurements in, answers out."""
