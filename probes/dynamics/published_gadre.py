"""Final losses and scores of Gadre et al.'s 104 models (arXiv 2403.08540): sizes and lengths for scaling laws.

Apart from `published.py`, whose runs have curves: of these models only the end was measured. They are three families,
one for each training set; shots, items and scores of guessing are those of the authors' list of evaluations.
"""

from __future__ import annotations

import csv
import lzma
from collections.abc import Mapping
from functools import cache

import numpy as np

from probes.dynamics.published import folder
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, Series, curve_of
from probes.dynamics.tasks import domain_of

GADRE_SETS = ("c4_original", "rpj", "rw_original")
"""Training sets: C4, RedPajama and RefinedWeb."""
AVERAGE_TASKS = (
    "arc_easy",
    "bigbench_cs_algorithms",
    "bigbench_dyck_languages",
    "bigbench_novel_concepts",
    "bigbench_operators",
    "bigbench_qa_wikidata",
    "boolq",
    "commonsense_qa",
    "copa",
    "coqa",
    "hellaswag",
    "hellaswag_zeroshot",
    "lambada_openai",
    "piqa",
    "pubmed_qa_labeled",
    "squad",
    "winograd",
)
"""The 17 tasks whose mean error the authors' second law describes."""


@cache
def gadre() -> CurveTable:
    """All models; runs are named as by the authors, `rpj-open_lm_7b-1.0`, with 1.0 for 20 tokens a parameter.

    Parameters include the embeddings, as the authors count them. Standard errors are binomial.
    """
    with (folder() / "gadre_tasks.csv").open(newline="", encoding="utf-8") as file:
        tasks = {row["task"]: row for row in csv.DictReader(file)}
    with lzma.open(folder() / "gadre_scaling.csv.xz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    facts = {row["name"]: _facts(row) for row in rows}
    curves = []
    for row in rows:
        value, told = float(row["value"]), tasks.get(row["task"])
        chance, shots, stderr, domain = np.nan, -1, np.nan, LOSS_DOMAIN
        if told is not None:
            chance, shots = float(told["chance"]), int(told["shots"])
            stderr = (value * (1 - value) / int(told["items"])) ** 0.5
            domain = domain_of(row["task"], otherwise=told["domain"])
        curves.append(
            curve_of(
                [(-1, float(row["tokens"]), value, stderr)],
                run=row["name"],
                series=Series(row["task"], row["metric"], shots),
                domain=domain,
                chance=chance,
            )
        )
    return CurveTable(facts.values(), curves)


def _facts(row: Mapping[str, str]) -> RunFacts:
    return RunFacts(
        name=row["name"],
        family=f"gadre-{row['dataset']}",
        parameters=float(row["params"]),
        total_tokens=float(row["tokens"]),
    )
