"""The figures of `probes.curves`, drawn with matplotlib; the only place that imports it.

One module for each kind of result. They are given results and compute nothing. Figures are made without pyplot, so
drawing needs no display, leaves no open figures behind, and can be done in threads.
"""
