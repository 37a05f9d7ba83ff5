#!/usr/bin/env bash
# Starts this node's processes of a run, one per GPU. Start it once on every node; all arguments go to `pretrain`.
#   bash launch/torchrun.sh experiment=amber_7b parallel.tensor=2          one node
#   srun bash launch/torchrun.sh experiment=amber_7b                       every node of a Slurm job (slurm.sbatch)
#   MASTER_ADDR=node0 NNODES=2 NODE_RANK=1 bash launch/torchrun.sh …       by hand
# Variables: NPROC_PER_NODE (default: the GPUs, or 1), MASTER_ADDR, MASTER_PORT, NNODES, NODE_RANK,
# FINELINE_PYTHON (default: .venv of this checkout, else python), FINELINE_MODULE (default: pretrain),
# FINELINE_DRY_RUN=1 prints the command instead of running it.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

python="${FINELINE_PYTHON:-}"
if [ -z "$python" ]; then
  python="${FINELINE_VENV:-$root/.venv}/bin/python"
  [ -x "$python" ] || python=python
fi

processes="${NPROC_PER_NODE:-}"
if [ -z "$processes" ]; then
  processes=0
  if command -v nvidia-smi >/dev/null; then
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
      processes="$(echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true)"
    else
      processes="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
    fi
  fi
  [ "$processes" -gt 0 ] || processes="${SLURM_GPUS_ON_NODE:-1}"
fi

# The step's variables first: a step may use fewer nodes than its job.
nodes="${NNODES:-${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-1}}}"
node_rank="${NODE_RANK:-${SLURM_NODEID:-0}}"
if [ "$nodes" -gt 1 ]; then
  node_list="${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}}"
  if [ -z "${MASTER_ADDR:-}" ] && [ -n "$node_list" ]; then
    hosts="$(scontrol show hostnames "$node_list")" # not `| head`: a list longer than the pipe would end the script
    MASTER_ADDR="${hosts%%$'\n'*}"
  fi
  if [ -z "${MASTER_ADDR:-}" ]; then
    echo "[fineline] $nodes nodes, but neither MASTER_ADDR nor a Slurm node list says which is the first." >&2
    exit 2
  fi
  # Two jobs that share a node must not share a port; a job's own nodes must agree on it.
  port="${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-9500} % 20000))}"
  rendezvous=(--nnodes "$nodes" --node-rank "$node_rank" --master-addr "$MASTER_ADDR" --master-port "$port")
elif [ -n "${MASTER_PORT:-}" ]; then
  rendezvous=(--nnodes 1 --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "$MASTER_PORT")
else
  rendezvous=(--standalone)
fi

command=("$python" -m pretrain.torchrun "${rendezvous[@]}" --nproc-per-node "$processes" -m "${FINELINE_MODULE:-pretrain}" "$@")
if [ -n "${FINELINE_DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Megatron-core's tensor parallelism relies on kernels being launched in order.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
# The launcher must live through USR1, which tells the trainers below it to save and leave (slurm.sbatch).
trap '' USR1
exec "${command[@]}"
