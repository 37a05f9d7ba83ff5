"""Curves of scores in a notebook: read runs into a table, then ask what the commands answer.

    from probes import curves

    table = curves.load("runs/mine", "runs/small-1", "runs/small-2")
    table.to_pandas()                                       # one row per score
    predicted = curves.predict(table, run="mine")           # final scores with 80 % intervals, or why none
    predicted.to_pandas()
    predicted.plot()                                        # a matplotlib figure

`predict`, `state`, `trust`, `fit` and `compare` each give a result that is a list of its findings, shows itself as a
table with what was refused below, and has `to_pandas()`, `plot()` and `write("name.csv")` (also .parquet, .json, .png,
.svg). Arguments are the commands' options: where a message names `--at-tokens`, that is the argument `at_tokens` here.

Importing it is quick: arrays, pandas and matplotlib are loaded by what needs them.
"""

from probes.curves.comparison import Comparison, compare
from probes.curves.fits import Fits, fit
from probes.curves.predictions import Predictions, predict
from probes.curves.reading import load
from probes.curves.states import States, state
from probes.curves.trusted import Trust, trust

__all__ = [
    "Comparison",
    "Fits",
    "Predictions",
    "States",
    "Trust",
    "compare",
    "fit",
    "load",
    "predict",
    "state",
    "trust",
]
