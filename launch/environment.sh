# Sourced by test.sh and demo.sh: finds Python, makes a virtual environment, installs, counts GPUs.
# Safe to run twice, to interrupt, and to run at the same time from two terminals. Not for compute nodes of a
# cluster: see torchrun.sh.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${FINELINE_VENV:-$ROOT/.venv}"

say() { printf '[fineline] %s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  say "No Python 3.11 or newer with the venv module was found. Install one (Debian: apt install python3 python3-venv),"
  say "or name it: PYTHON=/path/to/python3.11 bash $0"
  exit 2
}

# install KIND: `run` for what training needs, `test` for the checks too. Leaves a stamp when it is complete.
install_fineline() {
  local kind="$1" target wanted
  target="-e $ROOT"
  [ "$kind" = test ] && target="-e $ROOT[test]"
  wanted="$(cat "$ROOT/pyproject.toml" "$ROOT/launch/constraints.txt" | cksum) $ROOT"
  mkdir -p "$VENV"
  exec 9>"$VENV/.fineline.lock"
  if command -v flock >/dev/null; then
    flock --nonblock 9 || { say "waiting for another installation into $VENV"; flock 9; }
  fi
  # The test installation holds everything a run needs.
  if [ "$(cat "$VENV/.fineline-$kind" 2>/dev/null || true)" != "$wanted" ] &&
    { [ "$kind" = test ] || [ "$(cat "$VENV/.fineline-test" 2>/dev/null || true)" != "$wanted" ]; }; then
    say "installing into $VENV (a few minutes the first time)"
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$(find_python)" -m venv "$VENV"
    # shellcheck disable=SC2086
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c "$ROOT/launch/constraints.txt" $target
    echo "$wanted" >"$VENV/.fineline-$kind.new"
    mv "$VENV/.fineline-$kind.new" "$VENV/.fineline-$kind"
  fi
  exec 9>&-
}

# GPUs that this shell may use: CUDA_VISIBLE_DEVICES if set, else what the driver lists.
count_gpus() {
  if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    echo 0
  elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
  else
    nvidia-smi -L | grep -c '^GPU ' || true
  fi
}
