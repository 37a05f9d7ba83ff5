#!/usr/bin/env bash
# Trains the demo, scores it at every save and writes a report. Makes its own virtual environment on the first run.
#   bash launch/demo.sh                          two processes on CPU, or one per GPU
#   bash launch/demo.sh run.name=long train.steps=1000
# Run it again to resume; a finished run is only reported again.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_fineline run
cd "$ROOT"
gpus="$(count_gpus)"
if [ "$gpus" -gt 0 ]; then
  processes=1 # the largest power of two that fits, so that the demo's batch divides
  while [ $((processes * 2)) -le "$gpus" ] && [ "$processes" -lt 2 ]; do processes=$((processes * 2)); done
else
  processes=2
  export OMP_NUM_THREADS=1
fi
processes="${NPROC_PER_NODE:-$processes}"

train=("$VENV/bin/python" -m pretrain.torchrun --standalone --nproc-per-node "$processes" -m pretrain experiment=demo "$@")
if [ -n "${FINELINE_DRY_RUN:-}" ]; then
  printf '%q ' "${train[@]}"
  echo
  exit 0
fi
# Also the first look at the overrides: one process tells what is wrong, before torch is loaded.
config="$("$VENV/bin/python" -m pretrain --cfg job experiment=demo "$@")"
directory="$(echo "$config" | "$VENV/bin/python" -c 'import sys, yaml; run = yaml.safe_load(sys.stdin)["run"]; print(run["dir"], run["name"], sep="/")')"
"${train[@]}"
"$VENV/bin/python" -m probes report "$directory"
say "run directory: $directory"
say "report: $directory/report.html"
