"""Stable names of everything a run measures, with unit and meaning; charts, reports and scripts rely on them.

What precedes the first slash is the chart group in W&B and TensorBoard, hence one `probe-<domain>` group
per domain. A name that is renamed breaks old runs' charts: add, don't rename. No numbers are made here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TRAIN_LOSS = "train/loss"
TRAIN_Z_LOSS = "train/z_loss"
TRAIN_GRAD_NORM = "train/grad_norm"
TRAIN_LEARNING_RATE = "train/learning_rate"
PERF_TOKENS_PER_SECOND = "perf/tokens_per_second"
PERF_STEP_SECONDS = "perf/step_seconds"
PERF_DATA_SECONDS = "perf/data_seconds"
PERF_MFU = "perf/mfu"
FP8_LOSS_GAP = "precision/fp8_loss_gap"
FLOPS = "flops"
PROBE_TOKENS = "probe_tokens"
DYNAMICS_OUTPUT_ENTROPY = "dynamics/output_entropy"
STATE_VERDICT = "state/verdict"
TIME_TRAINING_SECONDS = "time/training_seconds"
TIME_VALIDATION_SECONDS = "time/validation_seconds"
TIME_PROBING_SECONDS = "time/probing_seconds"
TIME_SAVING_SECONDS = "time/saving_seconds"


@dataclass(frozen=True, slots=True)
class MetricMeaning:
    """What a metric is.

    Attributes:
        description: one sentence.
        unit: unit of the value; empty for a plain number.
    """

    description: str
    unit: str


MEANINGS: dict[str, MetricMeaning] = {
    "step": MetricMeaning("Optimizer steps done", "steps"),
    "tokens": MetricMeaning("Tokens trained on, over all ranks", "tokens"),
    PROBE_TOKENS: MetricMeaning("Tokens trained on at the checkpoint that was scored: the x axis of scores", "tokens"),
    FLOPS: MetricMeaning("Training compute spent so far, forward and backward", "FLOPs"),
    TRAIN_LOSS: MetricMeaning("Mean cross-entropy of the step's batch", "nats/token"),
    TRAIN_Z_LOSS: MetricMeaning("Coefficient times log(Z)² of the step's batch, beside the loss", "nats/token"),
    TRAIN_GRAD_NORM: MetricMeaning("Norm of the whole gradient before clipping", ""),
    TRAIN_LEARNING_RATE: MetricMeaning("Learning rate the step was taken with", ""),
    PERF_TOKENS_PER_SECOND: MetricMeaning("Training throughput over all ranks", "tokens/s"),
    PERF_STEP_SECONDS: MetricMeaning("Wall time of the training step alone", "s"),
    PERF_DATA_SECONDS: MetricMeaning("Part of the step's wall time spent waiting for its batch", "s"),
    PERF_MFU: MetricMeaning("Model FLOPs utilisation: share of the devices' peak", "fraction"),
    FP8_LOSS_GAP: MetricMeaning("Loss in fp8 minus loss in bf16, same tokens and weights", "nats/token"),
    TIME_TRAINING_SECONDS: MetricMeaning("Wall time spent training since the row before", "s"),
    TIME_VALIDATION_SECONDS: MetricMeaning("Wall time spent on validation since the row before", "s"),
    TIME_PROBING_SECONDS: MetricMeaning("Wall time spent probing since the row before", "s"),
    TIME_SAVING_SECONDS: MetricMeaning("Wall time training waited for a save since the row before", "s"),
    DYNAMICS_OUTPUT_ENTROPY: MetricMeaning("Mean entropy of the model's next-token distribution", "nats"),
    "dynamics/<part>/grad_norm": MetricMeaning("Norm of the gradient of these weights before clipping", ""),
    "dynamics/<part>/weight_norm": MetricMeaning("Norm of these weights before the update", ""),
    "dynamics/<part>/update_ratio": MetricMeaning("Norm of the applied update over the norm of the weights", ""),
    "dynamics/<part>/second_moment_norm": MetricMeaning("Norm of Adam's second moment after the update", ""),
    "dynamics/<layer>/activation_rms": MetricMeaning("Root mean square of the residual stream after the layer", ""),
    "dynamics/<layer>/largest_attention_logit": MetricMeaning("Largest magnitude of an attention logit", ""),
    STATE_VERDICT: MetricMeaning(
        "Verdict on the run at a save: 0 healthy, 1 watch, 2 act; -1 where nothing was judged", ""
    ),
    "state/change": MetricMeaning("Latest scores of all tasks against expectation; more is better", "deviations"),
    "state/<domain>/change": MetricMeaning("The same of one domain", "deviations"),
    "state/<domain>/level": MetricMeaning(
        "Scores of one domain against runs of this size and token count; more is better", "deviations"
    ),
    "data/<source>/tokens": MetricMeaning("Tokens consumed from this source", "tokens"),
    "data/<source>/epochs": MetricMeaning("Passes over this source's training tokens so far", "epochs"),
    "validation/<domain>/loss": MetricMeaning("Mean cross-entropy on held-out text of the domain", "nats/token"),
    "validation/<domain>/bits_per_byte": MetricMeaning(
        "The same per byte of text: comparable over tokenizers", "bits/byte"
    ),
    "probe-<domain>/<task>/<metric>": MetricMeaning("Score of a downstream task at a save", ""),
}
"""Every name, or the pattern of a family of names, with its meaning."""


def dynamics(figure: str, *, layer: int | None = None, group: str | None = None) -> str:
    """Name of a figure of an observed step: of a layer (counted from 0), of a group of weights, or of both.

    For example `dynamics/layer_003/attention_qkv/grad_norm`: numbers have leading zeros, so that names sort.
    """
    where = [f"layer_{layer:03d}"] if layer is not None else []
    return "/".join(["dynamics", *where, *([group] if group is not None else []), figure])


def state_figure(figure: str, *, domain: str | None = None) -> str:
    """Name of a figure of the run's state (`change` or `level`), of all tasks or of one domain."""
    return "/".join(["state", *([domain] if domain is not None else []), figure])


def source_tokens(source: str) -> str:
    """Name of the tokens consumed from one data source."""
    return f"data/{source}/tokens"


def source_epochs(source: str) -> str:
    """Name of the passes over one data source."""
    return f"data/{source}/epochs"


def validation_loss(domain: str) -> str:
    """Name of a validation domain's loss, in nats per token."""
    return f"validation/{domain}/loss"


def validation_bits_per_byte(domain: str) -> str:
    """Name of a validation domain's loss in bits per byte of text."""
    return f"validation/{domain}/bits_per_byte"


def probe_name(domain: str, task: str, metric: str) -> str:
    """Name of one metric of one task; the task `mean` is the domain's mean over its tasks."""
    return f"probe-{domain}/{task}/{metric}"


@dataclass(frozen=True, slots=True)
class ProbeName:
    """The parts of a probe's name."""

    domain: str
    task: str
    metric: str


def parse_probe_name(name: str) -> ProbeName | None:
    """The parts of a name made by `probe_name`; None for any other name."""
    match = re.fullmatch(r"probe-([^/]+)/(.+)/([^/]+)", name)
    return ProbeName(*match.groups()) if match else None


def parse_validation_name(name: str) -> tuple[str, str] | None:
    """Domain and quantity (`loss` or `bits_per_byte`) of a validation name; None for any other name."""
    match = re.fullmatch(r"validation/(.+)/(loss|bits_per_byte)", name)
    return (match[1], match[2]) if match else None


def meaning(name: str) -> MetricMeaning | None:
    """What a metric name means, families included; None for a name that is not ours."""
    if name in MEANINGS:
        return MEANINGS[name]
    for pattern, known in MEANINGS.items():
        regex = re.sub(r"<\w+>", "(.+)", pattern)
        if "<" in pattern and re.fullmatch(regex, name):
            return known
    return None
