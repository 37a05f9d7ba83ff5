"""What the scores of checkpoints tell: pure functions over one table of curves; no torch, no files but `load`'s."""
