#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One task of launch/slurm/train.sbatch: runs `ring train` and notes its exit status, since
# srun tells only the highest of all.
#
#   task.sh FOLDER PRESET [arguments of ring train]
set -euo pipefail

folder=$1
shift
# Slurm signals every process of a task. This one lives on, to note what ring says.
trap : TERM INT
"$(dirname -- "${BASH_SOURCE[0]}")/../train.sh" "$@" &
child=$!
while :; do
  status=0
  wait "$child" || status=$?
  kill -0 "$child" 2>/dev/null || break
done
printf '%s\n' "$status" >"$folder/$SLURM_PROCID.new"
mv -- "$folder/$SLURM_PROCID.new" "$folder/$SLURM_PROCID"
exit "$status"
