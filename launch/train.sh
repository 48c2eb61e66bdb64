#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs `ring train` in this process with a preset of compiler flags: on each host of a pod,
# in each container, in each Slurm task. Its exit status is ring's.
#
#   launch/train.sh PRESET [arguments of ring train]
#
# Presets are in ring_jax/cluster/xla_flags.json; `none` sets nothing. Flags that the
# environment already has come last, so that they win. RING_XLA_PRESET tells the run which
# preset it has.
set -euo pipefail

script=train
here=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

case "${1:-}" in
  '' | -h | --help)
    sed -n '3,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
preset=$1
shift
ask flags -- "$preset"
# shellcheck disable=SC2154  # `ask` sets `facts`
variable=${facts%%=*}
flags="${facts#*=} ${!variable:-}"
# An empty LIBTPU_INIT_ARGS is harmless, but would stand in a run's record as if set.
if [ -n "${flags// /}" ]; then
  export "$variable=$flags"
fi
export RING_XLA_PRESET=$preset
exec "${RING:-$repo/.venv/bin/ring}" train "$@"
