"""From our configuration to DeepSpeed's: every key of it that is decided here, and the user's own beside them.

A run keeps what DeepSpeed was given as `deepspeed.json` in its directory. Keys of `engine.deepspeed` go in as they
are; one that is decided here is refused, naming the key of ours that decides it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pretrain.config.nearest import did_you_mean
from pretrain.config.run import RunConfig

FILE_NAME = "deepspeed.json"

_DECIDED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size",
    "managed_gradient_accumulation": "the engine, which runs all microbatches of a step",
    "optimizer": "the groups `optimizer` and engine.adam",
    "scheduler": "the group `schedule`",
    "gradient_clipping": "optimizer.grad_clip",
    "fp16": "precision.compute, which knows bf16 and fp32",
    "bf16.enabled": "precision.compute",
    "bf16.immediate_grad_update": "the engine",
    "torch_autocast": "precision.compute",
    "amp": "precision.compute",
    "data_types.grad_accum_dtype": "the engine: gradients are summed in fp32",
    "communication_data_type": "the engine: gradients are reduced in fp32",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer.device": "engine.offload_optimizer",
    "zero_optimization.offload_param.device": "engine.offload_parameters",
    "zero_optimization.overlap_comm": "engine.overlap_grad_reduce",
    "zero_optimization.reduce_bucket_size": "engine.bucket_size",
    "zero_optimization.allgather_bucket_size": "engine.bucket_size",
    "zero_optimization.memory_efficient_linear": "the engine: it would replace torch.nn.functional.linear for good",
    "zero_optimization.compute_grad_norm": "the engine, which reports the norm of every step",
    "tensor_parallel": "parallel.tensor",
    "pipeline": "parallel.pipeline",
    "sequence_parallel_size": "parallel.context",
    "data_parallel_size": "the processes that are left by parallel.tensor",
    "steps_per_print": "track.console.every",
    "zero_allow_untested_optimizer": "engine.adam",
    "zero_force_ds_cpu_optimizer": "engine.adam",
}
"""DeepSpeed's keys that are not the user's to set through `engine.deepspeed`, and what decides each."""

_UNSUPPORTED = {
    "compression_training": "compressed weights are not those that a checkpoint holds",
    "curriculum_learning": "the sample order is ours: sample i is a function of data, seed and i",
    "data_efficiency": "the sample order is ours: sample i is a function of data, seed and i",
    "elasticity": "the batch size is part of what a run is",
    "progressive_layer_drop": "the model has every layer in every step",
    "sparse_attention": "attention is ours",
    "hybrid_engine": "it is for reinforcement learning",
    "zero_optimization.zenflow": "it updates with stale gradients, whose state a checkpoint does not hold",
    "zero_optimization.zero_hpz_partition_size": "secondary copies of the weights would go stale when state is loaded",
    "zero_optimization.zero_quantized_weights": "quantised weights are not those that a checkpoint holds",
    "zero_optimization.zero_quantized_nontrainable_weights": "every weight is trained",
    "zero_optimization.zero_quantized_gradients": "gradients are reduced in fp32",
    "zero_optimization.offload_optimizer.ratio": "state split over devices is not where checkpoints look for it",
    "zero_optimization.offload_optimizer.super_offload": "its optimizer is not where checkpoints look for state",
    "zero_optimization.round_robin_gradients": "it reorders parameters, which checkpoints find by order",
}
"""Keys that would change what is trained or where state lies; refused with the reason."""


def build_ds_config(config: RunConfig, *, data_parallel: int) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`, as plain JSON values.

    Args:
        config: the resolved configuration; checked.
        data_parallel: copies of the weights.
    """
    engine, train = config.engine, config.train
    stage = engine.zero_stage or 0
    largest = max([train.global_batch_size, *(stage.global_batch_size for stage in train.batch_ramp)])
    zero: dict[str, Any] = {"stage": stage, "memory_efficient_linear": False}
    if stage:
        zero["overlap_comm"] = engine.overlap_grad_reduce
    if engine.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": engine.offload_optimizer}
    if engine.offload_parameters != "none":
        zero["offload_param"] = {"device": engine.offload_parameters}
    if engine.bucket_size is not None and stage:
        zero["reduce_bucket_size"] = zero["allgather_bucket_size"] = engine.bucket_size
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        # The engine itself says which microbatch is a step's last, so that batches may ramp; for DeepSpeed's buffers
        # it only matters whether there can be several.
        "gradient_accumulation_steps": largest // (train.micro_batch_size * data_parallel),
        # At stage 0 DeepSpeed tells nobody the norm and steps on what is not finite: there the engine clips.
        "gradient_clipping": config.optimizer.grad_clip if stage else 0.0,
        "zero_optimization": zero,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.precision.compute == "bf16":
        found |= {
            "bf16": {"enabled": True, "check_grad_overflow": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    return _merge(found, engine.deepspeed)


def own_key_problems(extra: Mapping[str, Any]) -> Iterator[str]:
    """What of `engine.deepspeed` is not the user's to set; needs no DeepSpeed."""
    for path in _paths(extra):
        decided = _first_match(path, _DECIDED)
        unsupported = _first_match(path, _UNSUPPORTED)
        if decided:
            yield f"engine.deepspeed.{path} is decided by {_DECIDED[decided]}. Remove it."
        elif unsupported:
            yield f"engine.deepspeed.{path} is not supported: {_UNSUPPORTED[unsupported]}. Remove it."


def validation_problems(config: RunConfig) -> list[str]:
    """What DeepSpeed itself says of the configuration, and keys that it never looks at; imports DeepSpeed."""
    from pretrain.engine.deepspeed.package import load_deepspeed

    load_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    given = _Watched(build_ds_config(config, data_parallel=1))
    try:
        DeepSpeedConfig(given)
    except Exception as error:  # noqa: BLE001 (pydantic's, assertions and plain ones: all mean the same here)
        return [f"engine.deepspeed={dict(config.engine.deepspeed)} is refused by DeepSpeed: {_reason(error)}."]
    unknown = [key for key in config.engine.deepspeed if key not in given.asked]
    return [
        f"engine.deepspeed.{key} is no key of DeepSpeed.{did_you_mean(key, sorted(given.asked))} Remove it."
        for key in unknown
    ]


def _reason(error: Any) -> str:
    if isinstance(error, ValueError) and hasattr(error, "errors"):  # pydantic's, without its links
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return " ".join(str(error).split()) or type(error).__name__


class _Watched(dict[str, Any]):
    """A configuration that remembers which of its keys were asked for: DeepSpeed ignores unknown ones in silence."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def _merge(ours: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in extra.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key)


def _first_match(path: str, known: Mapping[str, str]) -> str | None:
    """The known key that a path is, lies under, or contains."""
    return next((k for k in known if path == k or path.startswith(f"{k}.") or k.startswith(f"{path}.")), None)
