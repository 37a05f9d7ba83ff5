"""The commands of `python -m probes`, one a module with `HELP`, `add_arguments(parser)` and `run(options) -> int`.

Importing a command must be quick: what it needs is imported when it runs.
"""
