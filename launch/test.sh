#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up .venv and runs the default tests; arguments go to pytest.
#
#   launch/test.sh                      all but the markers slow, tpu and aot
#   launch/test.sh -m slow              only the slow ones
#   launch/test.sh tests/model -k rope
set -euo pipefail

repo=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ "${1:-}" = --aot ]; then
  echo "test: error: --aot does not exist yet; see launch/test.sh for what does." >&2
  exit 2
fi
"$repo/launch/setup.sh"
cd -- "$repo"
# Two workers: compiling takes most of the time, and uses one core at a time.
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile -m 'not slow and not tpu and not aot' "$@" </dev/null
