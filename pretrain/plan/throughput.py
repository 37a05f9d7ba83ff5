"""How long a training step takes: an analytic model, from the workload and from what the data sheet says of a device.

A step is matrix products, attention, passes over memory, and communication that no computation hides:

    step = microbatches x (layers + loss) + bubble + data-parallel collectives + optimizer

Each part is a count (FLOPs, bytes) over a rate (a peak times the share of it that is attained); `parts` holds the
seconds, which sum up to the step. Constants stand below with their meaning; those of a device are in
`configs/cluster/`. How near published figures it comes: README, "How long, on which machine". Not modelled: data
loading, checkpoints, probes, stragglers and faults; kernels too small to fill a device. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.cluster import ClusterConfig
from pretrain.errors import ConfigError
from pretrain.plan.links import Links, exposed
from pretrain.plan.workload import Shape, Workload, workload_of

__all__ = ["Shape", "Throughput", "Workload", "predict", "workload_of"]

_RECOMPUTED = {  # share of a layer's forward that backward runs again: matrix products, attention, elementwise
    "none": (0.0, 0.0, 0.0),
    "selective": (0.0, 1.0, 0.0),
    "elementwise": (0.0, 0.0, 1.0),
    "operators": (0.5, 0.0, 1.0),
    "full": (1.0, 1.0, 1.0),
}
_FLASH_BACKWARD = 2.5
"""Backward of fused attention over its forward: five products instead of two, since scores are computed again."""
_SCORE_PASSES = (6.5, 9.0)
"""Elements read and written per score where attention keeps them (forward, backward): products, softmax, dropout."""
_LOGIT_BYTES = {True: 16, False: 36}
"""Bytes read and written per logit in loss and its gradient: fused, and as fp32 copy, log-softmax and two gradients."""
_ADAM_BYTES = {True: 34, False: 96}
"""Per parameter: fp32 weight and moments read and written, gradient read for norm and update, bf16 written; fused, and
as PyTorch's eight passes over all parameters, a norm and a clip."""
_ACCUMULATE_BYTES = {True: 6, False: 10}
"""Per parameter and microbatch: fp32 sum read and written, in the product that makes the gradient or after it."""
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """A prediction.

    Attributes:
        step_seconds: of one optimizer step.
        tokens_per_second: of the whole job.
        parts: seconds of a step by what they are spent on; their sum is the step. Communication counts as far as
            computation does not hide it. A measured throughput has one part, `measured`.
        mfu_full_attention, mfu_causal: share of the peak, by definitions A and B of `pretrain.flops`; None where the
            peak is not known.
    """

    step_seconds: float
    tokens_per_second: float
    parts: dict[str, float]
    mfu_full_attention: float | None
    mfu_causal: float | None


def predict(workload: Workload, cluster: ClusterConfig) -> Throughput:
    """Predicts throughput; deterministic.

    Args:
        workload: what is computed, and how it is spread out.
        cluster: what the devices can do; `processes_per_node` says which collectives stay within a machine.

    Raises:
        ConfigError: the cluster group does not describe a device, and no throughput was measured.
    """
    measured = cluster.tokens_per_second_per_device
    if measured is None:
        parts = _parts(workload, cluster)
    else:
        parts = {"measured": workload.tokens_per_step / (measured * workload.devices)}
    step = sum(parts.values())
    speed = workload.tokens_per_step / step
    shape = workload.shape
    matmul = 6.0 * (shape.num_layers * shape.layer_parameters + shape.output_parameters)
    scores = float(shape.num_layers * shape.hidden_size * workload.sequence_length)
    full, causal = (speed * (matmul + factor * scores) / workload.devices for factor in (12, 6))
    peak = None if cluster.peak_teraflops is None else cluster.peak_teraflops * 1e12
    return Throughput(
        step_seconds=step,
        tokens_per_second=speed,
        parts=parts,
        mfu_full_attention=None if peak is None else full / peak,
        mfu_causal=None if peak is None else causal / peak,
    )


def _check(workload: Workload, cluster: ClusterConfig) -> None:
    needed = [*_NEEDED]
    if workload.compute == "fp32":
        needed.append("fp32_teraflops")
    if workload.optimizer_on_cpu:
        needed += ["host_gigabytes_per_second", "host_memory_gigabytes_per_second"]
    missing = [f"cluster.{name}" for name in needed if getattr(cluster, name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: null, so that no time can be predicted. Choose a device, as cluster=h100, give the "
            f"missing values, or what was measured, as cluster.tokens_per_second_per_device=9000."
        )


_NEEDED = (
    "peak_teraflops",
    "matmul_share",
    "attention_share",
    "memory_gigabytes_per_second",
    "memory_share",
    "link_gigabytes_per_second",
    "link_share",
    "network_gigabits_per_second",
    "network_share",
    "network_latency_microseconds",
)


def _parts(workload: Workload, cluster: ClusterConfig) -> dict[str, float]:
    _check(workload, cluster)
    device, links = Device(cluster, workload), Links(cluster, workload)
    count, layers = workload.num_microbatches, workload.stage_layers
    forward = device.layer_forward()
    backward = device.layer_backward()
    again = device.layer_recompute()
    tensor_forward, tensor_backward = links.tensor(recomputed=_RECOMPUTED[workload.recompute][0])
    if workload.overlap_tensor:
        tensor_forward = exposed(tensor_forward, beside=forward["matmul"])
        tensor_backward = exposed(tensor_backward, beside=backward["matmul"])
    per_microbatch = {
        "matmul": layers * (forward["matmul"] + backward["matmul"]),
        "attention": layers * (forward["attention"] + backward["attention"]),
        "elementwise": layers * (forward["elementwise"] + backward["elementwise"]),
        "recompute": layers * sum(again.values()),
        "tensor": layers * (tensor_forward + tensor_backward),
        "context": layers * links.context(),
        "pipeline": links.pipeline(),
    }
    busy = sum(per_microbatch.values())
    parts = {name: count * seconds for name, seconds in per_microbatch.items()}
    # The last stage has the loss on top of its layers, and the others wait for it.
    parts["loss"] = count * device.loss()
    # While the pipeline fills and drains (Narayanan et al. 2021): p - 1 microbatches, or chunks of them.
    parts["bubble"] = (workload.pipeline - 1) / workload.virtual_pipeline * busy
    parts["data"] = _data_parallel(
        workload,
        links,
        forward=layers * (sum(forward.values()) + tensor_forward),
        backward=layers * (sum(backward.values()) + sum(again.values()) + tensor_backward),
    )
    parts["optimizer"] = device.optimizer() + device.accumulation()
    return parts


def _data_parallel(workload: Workload, links: Links, *, forward: float, backward: float) -> float:
    """Seconds of gradient reduction and parameter gathers that computation of one microbatch does not hide."""
    layers, shape = workload.stage_layers, workload.shape
    parameters = (layers * shape.layer_parameters + shape.output_parameters) / workload.tensor
    pieces = max(1.0, layers)  # collectives are a layer each
    gather = links.shard(parameters * workload.gather_bytes, pieces)
    reduce = links.shard(parameters * workload.gradient_bytes, pieces)
    reduce += links.replicas(parameters * workload.gradient_bytes, pieces)
    if workload.sharding == "none":  # an all-reduce, in place of reduction, update of a share, and gather
        gather, reduce = 0.0, 2 * reduce
    times = workload.num_microbatches if workload.sharding in ("gradients", "parameters") else 1
    gathers = workload.num_microbatches if workload.sharding == "parameters" else 1
    gather_backward = gather if workload.sharding == "parameters" else 0.0
    if not workload.overlap_data:
        return gathers * (gather + gather_backward) + times * reduce
    seen_forward, seen_backward = exposed(gather, beside=forward), exposed(reduce + gather_backward, beside=backward)
    return gathers * seen_forward + times * seen_backward


def _number(value: float | None) -> float:
    assert value is not None, "_check has refused a cluster that lacks a number"
    return value


class Device:
    """Seconds of what one device computes, from its rates; one microbatch, one layer unless said otherwise."""

    def __init__(self, cluster: ClusterConfig, workload: Workload) -> None:
        self.cluster, self.workload, self.shape = cluster, workload, workload.shape
        peak = cluster.peak_teraflops if workload.compute == "bf16" else cluster.fp32_teraflops
        self.flops = _number(peak) * 1e12 * _number(cluster.matmul_share)
        self.attention_flops = _number(peak) * 1e12 * _number(cluster.attention_share)
        self.bytes = _number(cluster.memory_gigabytes_per_second) * 1e9 * _number(cluster.memory_share)

    def layer_forward(self) -> dict[str, float]:
        """By kind of work."""
        shape = self.shape
        inner = 2 * shape.hidden_size + 2 * shape.key_value_size + (3 if shape.gated else 2) * shape.ffn_hidden_size
        scores, passes = self._attention()
        return {
            "matmul": self._matmul(shape.layer_parameters, whole=4 * shape.hidden_size, split=inner),
            "attention": scores + passes * _SCORE_PASSES[0],
            "elementwise": self._elementwise(backward=False),
        }

    def layer_backward(self) -> dict[str, float]:
        """By kind of work, without recomputation."""
        forward = self.layer_forward()
        scores, passes = self._attention()
        return {
            "matmul": 2 * forward["matmul"],
            "attention": (2.0 if self.workload.scores else _FLASH_BACKWARD) * scores + passes * _SCORE_PASSES[1],
            "elementwise": self._elementwise(backward=True),
        }

    def layer_recompute(self) -> dict[str, float]:
        """What backward computes a second time, by kind of work."""
        shares = _RECOMPUTED[self.workload.recompute]
        return {
            name: share * seconds for (name, seconds), share in zip(self.layer_forward().items(), shares, strict=True)
        }

    def loss(self) -> float:
        """Output layer, loss and their gradients, of one microbatch."""
        work, shape = self.workload, self.shape
        logits = work.tokens * shape.vocab_size / work.tensor
        product = self._matmul(shape.output_parameters, whole=shape.hidden_size, split=shape.vocab_size)
        return 3 * product + logits * _LOGIT_BYTES["loss" in work.fused] / self.bytes

    def optimizer(self) -> float:
        """The update of this rank's share, once a step."""
        work = self.workload
        share = self._parameters / (1 if work.sharding == "none" else work.shard_ranks or work.data * work.context)
        if not work.optimizer_on_cpu:
            return share * _ADAM_BYTES["optimizer" in work.fused] / self.bytes
        link = _number(self.cluster.host_gigabytes_per_second)
        memory = _number(self.cluster.host_memory_gigabytes_per_second)
        # Gradients go down and weights come up, both fp32; sharded weights live there and come up for every pass.
        copies = 2 + (2 * work.num_microbatches if work.sharding == "parameters" else 0)
        return share * (copies * _FP32 / (link * 1e9) + _ADAM_BYTES["optimizer" in work.fused] / (memory * 1e9))

    def accumulation(self) -> float:
        """Adding each microbatch's gradients to the fp32 sums, once a step."""
        work = self.workload
        share = (work.shard_ranks or work.data * work.context) if work.sharding in ("gradients", "parameters") else 1
        return (
            work.num_microbatches * self._parameters / share * _ACCUMULATE_BYTES["gradients" in work.fused] / self.bytes
        )

    @property
    def _parameters(self) -> float:
        """Of this rank's tensor- and pipeline-parallel part."""
        work, shape = self.workload, self.shape
        return (work.stage_layers * shape.layer_parameters + shape.output_parameters) / work.tensor

    def _matmul(self, parameters: int, *, whole: int, split: int) -> float:
        """Two FLOPs a weight and token, and weights and operands through memory once: what makes small products slow.

        Args:
            parameters: weights, of all tensor-parallel ranks together.
            whole: elements a token that every one of these ranks reads or writes.
            split: elements a token that they share out.
        """
        work = self.workload
        elements = work.tokens * (whole + split / work.tensor) + parameters / work.tensor
        flops = 2.0 * parameters * work.tokens / work.tensor
        return flops / self.flops + elements * work.element_bytes / self.bytes

    def _attention(self) -> tuple[float, float]:
        """Forward: seconds of its products, and of one pass over scores that are kept (0 where they are not)."""
        work, shape = self.workload, self.shape
        pairs = work.tokens * work.sequence_length / work.tensor
        if not work.scores:  # half of the pairs are hidden, and skipped
            return (4.0 if work.masked else 2.0) * pairs * shape.hidden_size / self.attention_flops, 0.0
        passes = pairs * shape.num_attention_heads * work.element_bytes / self.bytes
        return 4.0 * pairs * shape.hidden_size / self.flops, passes

    def _elementwise(self, *, backward: bool) -> float:
        """Passes over memory between the matrix products, in elements a token.

        Norms and residual additions work on H, rotation on Q + K, the activation on F. Counted are reads and writes:
        norm and addition in one kernel 4, in two 5, or operation by operation, in fp32, 23; each twice a layer. A
        rotation 2 or 10; SwiGLU 3 or 5; GELU 2. Backward as many again when fused (activations 5 and 3), else twice.
        """
        work, shape = self.workload, self.shape
        gated, fused = shape.gated, "layers" in work.fused
        norms = 2 * (4 if fused else 5 if work.fused_norm else 23)
        rotation = (2 if fused else 10) * gated
        activation = (3 if fused else 5) if gated else 2
        if backward and fused:
            activation = 5 if gated else 3
        elif backward:
            norms, rotation, activation = 2 * norms, 2 * rotation, 2 * activation
        split = work.tensor if work.sequence_parallel else 1
        elements = norms * shape.hidden_size / split
        elements += rotation * (shape.hidden_size + shape.key_value_size) / work.tensor
        elements += activation * shape.ffn_hidden_size / work.tensor
        return elements * work.tokens * work.element_bytes / self.bytes
