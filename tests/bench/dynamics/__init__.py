"""How well the methods of `probes.dynamics` do on published runs; `python -m tests.bench.dynamics`."""
