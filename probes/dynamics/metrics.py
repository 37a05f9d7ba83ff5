"""The families of metrics, by name: which count right answers, which are losses, which are perplexities, which fall.

The one place that lists them. A metric may carry the filter that lm-eval made it with (`exact_match,strict-match`): it
belongs to the family of its plain name. What guessing scores is for `probes.dynamics.guessing` to say.
"""

from __future__ import annotations

ACCURACIES = ("acc", "acc_norm", "acc_bytes", "len_norm", "exact_match", "em", "mc1", "ppl_acc", "pass@1")
"""Shares of right answers: of them the score of guessing is the share of right answers among the choices."""

GRADED = ("mc2", "f1")
"""Scores between 0 and 1 that give parts of an answer their due."""

SCORES = ACCURACIES + GRADED

BITS_PER_BYTE = ("gold_bpb", "bpb", "bits_per_byte")

LOSSES = (*BITS_PER_BYTE, "ce_loss", "loss", "ppl_gold")
"""Nats or bits; the best base of a score first."""

PERPLEXITIES = ("word_perplexity", "byte_perplexity", "perplexity", "ppl")
"""Exponentials of losses: what is computed with is their logarithm."""

TEXT_LOSSES = ("loss", "ce_loss", "word_perplexity", "byte_perplexity")
"""Of the language model on running text, whatever domain a record puts them into."""

LOWER_IS_BETTER = frozenset({*LOSSES, *PERPLEXITIES, "brier_score"})

PREDICTED = SCORES + LOSSES + PERPLEXITIES
"""Metrics with a best value that the laws know."""

EARLIEST_FIRST = (
    "gold_bpb",
    "bpb",
    "acc_norm",
    "acc",
    "acc_bytes",
    "exact_match",
    "len_norm",
    "ppl_acc",
    "em",
    "mc1",
    "pass@1",
    "mc2",
    "f1",
)
"""What stands for a task whose state is judged, the first that it has: bits per byte move first."""

PLAINEST_FIRST = ("acc", "exact_match", "len_norm", "acc_norm", "acc_bytes", "ppl_acc", "em", "mc1", "pass@1", *GRADED)
"""What stands for a task on a page, the first that it has."""


def plain(metric: str) -> str:
    """The metric without the filter that lm-eval made it with."""
    return metric.partition(",")[0]


def is_accuracy(metric: str) -> bool:
    """Whether it is a share of right answers."""
    return plain(metric) in ACCURACIES


def is_score(metric: str) -> bool:
    """Whether it goes from 0 to 1, for everything right."""
    return plain(metric) in SCORES


def is_loss_metric(metric: str) -> bool:
    """Whether it is a loss in nats or bits, or a perplexity, which is the exponential of one."""
    return plain(metric) in LOSSES + PERPLEXITIES


def is_perplexity(metric: str) -> bool:
    """Whether it is the exponential of a loss."""
    return plain(metric) in PERPLEXITIES


def is_predicted(metric: str) -> bool:
    """Whether a law describes it."""
    return plain(metric) in PREDICTED


def is_text_loss(metric: str) -> bool:
    """Whether it measures the language model on running text, whatever the record calls the task."""
    return plain(metric) in TEXT_LOSSES


def is_lower_better(metric: str) -> bool:
    """Whether smaller values of a metric are better."""
    return plain(metric) in LOWER_IS_BETTER


def tells_quality(metric: str) -> bool:
    """Whether more of a metric means a better model, and no other metric of the record says the same.

    The probability of all choices together falls when a model learns to tell them apart; scores by length and rescaled
    ones repeat what the plain ones say.
    """
    return not metric.startswith("total_prob") and not metric.endswith(("_per_token", "_per_byte", "_rescaled"))
