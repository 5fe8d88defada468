#!/usr/bin/env bash
# Tests engines and models at both ends of the supported versions of torch and transformers, each end in an environment
# of its own under .venv-versions/. Usage: [SUITES="tests/engine"] run.sh oldest|newest|all [PYTEST OPTION...]
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
ends=${1:?oldest, newest or all}
shift
[ "$ends" != all ] || ends="oldest newest"
suites=${SUITES:-tests/engine tests/encoder tests/models}

for end in $ends; do
  venv=.venv-versions/$end
  wanted=$("$PYTHON" tests/versions/requirements.py "$end")
  if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing into $venv: torch with CUDA's libraries takes several GB"
    "$PYTHON" -m venv --clear "$venv"
    # shellcheck disable=SC2086  # one requirement a word
    (set -f; "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input $wanted)
    echo "$wanted" >"$venv/.installed"
  fi
  "$venv/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
  # shellcheck disable=SC2086  # one path a word
  PYTHONPATH=$PWD "$venv/bin/python" -m pytest -p no:cacheprovider $suites "$@"
done
