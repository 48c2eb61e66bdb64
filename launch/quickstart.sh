#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up .venv and trains the laptop run to its end: scores, export, report.
#
#   launch/quickstart.sh [workdir] [--config.section.field=value ...]
#
# The run folder is runs/quickstart in the repository unless named. Interrupted, the same
# command continues the run.
set -euo pipefail

repo=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
workdir=$repo/runs/quickstart
case "${1:-}" in
  '') ;;
  -h | --help)
    sed -n 's/^# \{0,1\}//; 3,8p' "$0"
    exit
    ;;
  -*) ;;
  *)
    workdir=$1
    shift
    ;;
esac
"$repo/launch/setup.sh"
# Large pages for large arrays make a step a tenth faster; other C libraries ignore this.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec "$repo/.venv/bin/ring" train --config="$repo/configs/quickstart.py" \
  --workdir="$workdir" "$@"
