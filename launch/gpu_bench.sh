#!/usr/bin/env bash
# Everything that wants a GPU, in stages of ten minutes at most; results and a log of each go into one folder.
#   bash launch/gpu_bench.sh RESULTS                       all stages, one after the other
#   bash launch/gpu_bench.sh RESULTS tests step_7b         some of them: for short visits, one stage a visit
#   RUN="data=files data.sources.web.paths=[web.jsonl.zst] data.prepared_dir=tokens" bash launch/gpu_bench.sh RESULTS run
#   QUICK=1 bash launch/gpu_bench.sh RESULTS               tiny sizes, also on a CPU: to see that everything runs
# PYTHON names the interpreter; nothing is installed here. What to bring, and how long each takes: tests/bench/gpu/__init__.py
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results="${1:?give a folder for the results}"
shift
mkdir -p "$results"
results="$(cd "$results" && pwd)"
python="${PYTHON:-python3}"
quick=()
[ -n "${QUICK:-}" ] && quick=(--quick)

# A stage that was cut short goes on where it stopped: outcomes so far are in gpu_step.partial.json.
step() {
  "$python" -m tests.bench.gpu_step --resume --minutes 9 --json "$results/gpu_step.json" ${quick[@]+"${quick[@]}"} "$@"
}

stage() {
  case "$1" in
    tests) "$python" -m pytest -q tests/gpu ;;
    step_1p3b) step --models 1.3b ;;
    step_7b) step --models 7b ;;
    step_8b) step --models 8b ;;
    peers_1p3b) step --models 1.3b --peers torchtitan hf_liger litgpt mcore_local ;;
    peers_7b) step --models 7b --peers torchtitan hf_liger litgpt mcore_local ;;
    variants) step --models 1.3b --variants ;;
    probe_1p3b) "$python" -m tests.bench.gpu_probe --models 1.3b --training "$results/gpu_step.json" \
      --json "$results/gpu_probe_1p3b.json" ${quick[@]+"${quick[@]}"} ;;
    probe_7b) "$python" -m tests.bench.gpu_probe --models 7b --training "$results/gpu_step.json" \
      --json "$results/gpu_probe_7b.json" ${quick[@]+"${quick[@]}"} ;;
    checkpoint) "$python" -m tests.bench.gpu_checkpoint --json "$results/gpu_checkpoint.json" ${quick[@]+"${quick[@]}"} ;;
    run)
      # shellcheck disable=SC2086  # overrides are words
      "$python" -m pretrain experiment=amber_160m_h200 run.dir="$results/runs" ${RUN:?give the data, as above} ;;
    *)
      echo "unknown stage $1; there are: ${all[*]}" >&2
      return 2
      ;;
  esac
}

all=(tests step_1p3b step_7b step_8b peers_1p3b peers_7b variants probe_1p3b probe_7b checkpoint run)
failed=()
for name in "${@:-${all[@]}}"; do
  echo "[$(date -u +%H:%M:%S)] $name" >&2
  stage "$name" 2>&1 | tee "$results/$name.log" || failed+=("$name")
done
[ "${#failed[@]}" -eq 0 ] || {
  echo "failed: ${failed[*]}" >&2
  exit 1
}
