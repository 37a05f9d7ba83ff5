"""Parts of the benchmarks that want a GPU, and how a visit to one goes.

`launch/gpu_bench.sh RESULTS` runs tests, benchmarks and the 160M run in stages, each under ten minutes and each on
its own when named, so that several short visits make one result. Nothing is installed there. Where no registry can be
reached, bring wheels for its Python and torch (`pip download --no-deps --python-version 3.12 …`):

- always: megatron-core 0.16.1 (for Python 3.12), hydra-core, omegaconf, antlr4-python3-runtime 4.9.3, orjson,
  zstandard, xxhash, plotly, datatrove; deepspeed for its tests in tests/gpu
- gpu_probe: lm-eval 0.4.13 and datasets with what they import
- peers of gpu_step: torchtitan 0.2.2 with torchdata, tyro, tomli; liger-kernel; litgpt with lightning, jsonargparse,
  torchmetrics, lightning-utilities. What is missing is recorded as missing.
- the run: text prepared beforehand (`python -m pretrain.data prepare experiment=amber_160m_h200 …`), named in RUN

Minutes below are estimates from counted FLOPs and start-up times, not measurements.

| stage | minutes | what comes out |
|---|---|---|
| tests | 5 | parity, optimizer, checkpoint, scoring on the GPU |
| step_1p3b, step_7b, step_8b | 4, 5, 2 | gpu_step.json: speed, MFU, share of products, parts, memory |
| peers_1p3b, peers_7b | 9 each, name them again until all is there | ratios, in the same file |
| variants | 9 | each kernel choice without the others |
| probe_1p3b, probe_7b | 4, 9 | gpu_probe_*.json |
| checkpoint | 3 | gpu_checkpoint.json |
| run | 9 | runs/amber_160m_h200: records, checkpoints, measurements |
"""
