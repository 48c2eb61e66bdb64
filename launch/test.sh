#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up .venv and runs the default tests; arguments go to pytest.
#
#   launch/test.sh                      all but the markers slow, tpu, aot and lm_eval
#   launch/test.sh --slow               only the slow ones
#   launch/test.sh --aot                compiles for TPUs that are not there, by their compiler
#   launch/test.sh --aot -m 'aot and slow'   whole steps of the recipes, minutes each
#   launch/test.sh --lm-eval            the adapter of lm-eval, whose packages take 320 MB
#   launch/test.sh tests/model -k rope
set -euo pipefail

repo=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ "${1:-}" = --aot ]; then
  shift
  "$repo/launch/setup.sh" test,tpu
  cd -- "$repo"
  # Two processes may load the compiler, no machine is asked what it is, and the programs
  # are optimised as a run's are.
  export JAX_PLATFORMS=cpu ALLOW_MULTIPLE_LIBTPU_LOAD=1 TPU_SKIP_MDS_QUERY=1
  export JAX_DISABLE_MOST_OPTIMIZATIONS=0
  exec .venv/bin/python -m pytest -q -n 2 -m 'aot and not slow' "$@" </dev/null
fi
if [ "${1:-}" = --lm-eval ]; then
  shift
  "$repo/launch/setup.sh" data,test,lm-eval
  cd -- "$repo"
  exec .venv/bin/python -m pytest -q -m lm_eval "$@" </dev/null
fi
which='not slow'
if [ "${1:-}" = --slow ]; then
  shift
  which=slow
fi
"$repo/launch/setup.sh"
cd -- "$repo"
# Large memory pages: the compiler allocates all the time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# Two workers: compiling takes most of the time, and uses one core at a time. Files keep
# the order of tests/conftest.py: those with few tests are not the short ones.
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
  -m "$which and not tpu and not aot and not lm_eval" "$@" </dev/null
