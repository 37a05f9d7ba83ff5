"""What we use of megatron-core that is not public, or replace on CPU: each must still be there, and mean the same."""

from __future__ import annotations

import importlib
import inspect

import pytest

from pretrain.engine.device import SHIMS, Shim

# (module, dotted attribute, why we need it, what its source must still say)
PRIVATE = [
    (
        "megatron.core.optimizer.distrib_optimizer",
        "DistributedOptimizer._get_model_param_range_map",
        "where a parameter's shard begins: flat start of the range this rank holds",
        "gbuf_ranges",
    ),
    (
        "megatron.core.optimizer.distrib_optimizer",
        "DistributedOptimizer.__init__",
        "model_param_group_index_map: parameter -> (group, index) of its fp32 shard",
        "model_param_group_index_map",
    ),
    (
        "megatron.core.optimizer.optimizer",
        "ChainedOptimizer.step_with_ready_grads",
        "the update alone, so that a step whose loss or gradient is not finite can be left out",
        "step_with_ready_grads",
    ),
    (
        "megatron.core.optimizer.optimizer",
        "Float16OptimizerWithFloat16Params.__init__",
        "param.main_param: the fp32 copy of a bf16 weight",
        "main_param",
    ),
    (
        "megatron.core.distributed.distributed_data_parallel",
        "DistributedDataParallel.disable_forward_pre_hook",
        "scoring calls submodules: their hooks would start collectives on ranks that have rows only",
        "start_param_sync(force_sync=True)",
    ),
    (
        "megatron.core.tensor_parallel.layers",
        "ColumnParallelLinear.__init__",
        "perform_initialization also marks parameters tensor-parallel, which the gradient norm relies on",
        "perform_initialization",
    ),
    (
        "megatron.core.tensor_parallel.layers",
        "ColumnParallelLinear.__init__",
        "OutputLayer takes its class: the loss cuts the vocabulary by it",
        "self.output_size_per_partition = divide(output_size, world_size)",
    ),
    (
        "megatron.core.models.gpt.gpt_model",
        "GPTModel.__init__",
        "what becomes an OutputLayer",
        "self.output_layer = tensor_parallel.ColumnParallelLinear(",
    ),
    (
        "megatron.core.tensor_parallel.layers",
        "LinearWithGradAccumulationAndAsyncCommunication.backward",
        "kernels.weight_gradients=accumulated takes the place of Apex's kernel under this name",
        "fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32",
    ),
    (
        "megatron.core.tensor_parallel.layers",
        "ColumnParallelLinear._forward_impl",
        "precision.fp8 multiplies in its place",
        "linear_with_grad_accumulation_and_async_allreduce",
    ),
    (
        "megatron.core.tensor_parallel.layers",
        "RowParallelLinear._forward_impl",
        "precision.fp8 multiplies in its place",
        "linear_with_grad_accumulation_and_async_allreduce",
    ),
    (
        "megatron.core.transformer.transformer_layer",
        "TransformerLayer._should_call_local_cudagraph",
        "kernels.cuda_graphs: scoring and observed steps get around the graphs here",
        "cudagraph_manager",
    ),
    (
        "megatron.core.models.common.embeddings.rotary_pos_embedding",
        "RotaryEmbedding.get_emb",
        "fused layers get cosines and sines in the place of angles",
        "get_freqs_non_repeated",
    ),
    (
        "megatron.core.optimizer.distrib_optimizer",
        "DistributedOptimizer.step_with_ready_grads",
        "kernels.optimizer=fused steps itself and starts the gather of weights as this does",
        "start_param_sync",
    ),
    (
        "megatron.core.optimizer.distrib_optimizer",
        "DistributedOptimizer._build_model_and_main_param_groups",
        "kernels.optimizer=fused rounds into these views of the model's weights",
        "shard_float16_groups",
    ),
    (
        "megatron.core.parallel_state",
        "get_global_memory_buffer",
        "sequence parallelism's pool, which scoring puts back as it was",
        "_GLOBAL_MEMORY_BUFFER",
    ),
]


@pytest.mark.parametrize(("module", "attribute", "reason", "text"), PRIVATE, ids=[entry[1] for entry in PRIVATE])
def test_megatron_still_has(module: str, attribute: str, reason: str, text: str) -> None:
    found = importlib.import_module(module)
    for name in attribute.split("."):
        assert hasattr(found, name), f"megatron-core no longer has {module}.{attribute}, needed because: {reason}"
        found = getattr(found, name)
    assert text in inspect.getsource(found), f"{module}.{attribute} no longer mentions {text}: {reason}"


@pytest.mark.parametrize("shim", SHIMS, ids=lambda shim: f"{shim.module}.{shim.attribute}")
def test_every_target_of_the_cpu_seam_exists(shim: Shim) -> None:
    assert hasattr(shim.owner(), shim.attribute), f"{shim.module}.{shim.attribute} is gone: {shim.reason}"
    assert shim.reason and shim.upstream


def test_the_seam_does_not_disturb_hugging_face_models_in_the_same_process() -> None:
    from tests.support.ranks import run_ranks

    plain, seamed = run_ranks("tests.contracts.test_megatron_names:_rotary_frequencies", 1)[0]
    assert plain == seamed


def _rotary_frequencies(_: object) -> tuple[list[float], list[float]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    from pretrain.engine.device import prepare_device

    def frequencies() -> list[float]:
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        )
        return LlamaForCausalLM(config).model.rotary_emb.inv_freq.tolist()

    plain = frequencies()
    prepare_device()
    return plain, frequencies()
