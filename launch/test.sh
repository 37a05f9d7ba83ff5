#!/usr/bin/env bash
# Runs the tests. Makes its own virtual environment on the first run.
#   bash launch/test.sh                 all but the slow ones
#   bash launch/test.sh --all           all
#   bash launch/test.sh -k schedule     further arguments go to pytest
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

selection=(-m "not slow")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
install_fineline test
cd "$ROOT"
[ "$(count_gpus)" -gt 0 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest ${selection[@]+"${selection[@]}"} "$@"
