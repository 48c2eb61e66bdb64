#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on GPU nodes of a Slurm cluster: one process a GPU, requeued after a preemption.
#
#   launch/slurm/submit.sh NAME --nodes=N [options] -- arguments of ring train
#
# Options:
#   --nodes=2              how many
#   --gpus-per-node=8      processes on each, too
#   --cpus-per-task=8      cores of each process, to read and tokenize with
#   --preset=h100          compiler flags (ring_jax/cluster/xla_flags.json), or none
#   --partition=P, --account=A, --time=HH:MM:SS  handed to sbatch
#   --sbatch-arg=ARG       any other, as it is; may be repeated
#   --max-restarts=8       after crashes; preemptions and the end of the time do not count
#   --dry-run              prints the command and submits nothing
#
# The repository, its .venv (launch/setup.sh gpu) and the run folder must be on storage that
# all nodes share. Logs go to the run folder's name with .slurm behind it. Follow one with
# tail -F, ask with squeue, end a run with scancel: it saves a checkpoint first, within the
# cluster's KillWait. Exit status: 0 submitted, 2 your mistake, 4 the environment failed.
set -euo pipefail

script=slurm
# shellcheck source=launch/commands.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../commands.sh"

usage() {
  sed -n '3,/^set -/{/^set -/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
}

name='' nodes='' gpus_per_node=8 cpus_per_task=8 preset=h100 max_restarts=8
sbatch_args=()
train_args=()

parse() {
  name=$1
  check_name "$name"
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --nodes=*) nodes=${1#*=} ;;
      --gpus-per-node=*) gpus_per_node=${1#*=} ;;
      --cpus-per-task=*) cpus_per_task=${1#*=} ;;
      --preset=*) preset=${1#*=} ;;
      --partition=* | --account=* | --time=*) sbatch_args+=("$1") ;;
      --sbatch-arg=*) sbatch_args+=("${1#*=}") ;;
      --max-restarts=*) max_restarts=${1#*=} ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        train_args=("$@")
        break
        ;;
      *) fail 2 "'$1' is no option (write values as --nodes=2); --help lists them." ;;
    esac
    shift
  done
}

check() {
  [ -n "$nodes" ] || fail 2 "no nodes: give --nodes=N, such as --nodes=2."
  check_number --nodes "$nodes"
  check_number --gpus-per-node "$gpus_per_node"
  check_number --cpus-per-task "$cpus_per_task"
  check_number --max-restarts "$max_restarts"
  [ "$nodes" -ge 1 ] && [ "$gpus_per_node" -ge 1 ] ||
    fail 2 "--nodes=$nodes --gpus-per-node=$gpus_per_node asks for nothing; give 1 or more."
  ask flags -- "$preset"
  # shellcheck disable=SC2154  # `ask` sets `facts`
  [ "$preset" = none ] || [[ $facts == XLA_FLAGS=* ]] ||
    fail 2 "--preset=$preset is for TPUs; on GPUs take h100 or none."
  check_train_args "${train_args[@]}"
  [ -n "$dry_run" ] && return 0
  [ -x "$repo/.venv/bin/ring" ] ||
    fail 2 "$repo/.venv has no ring_jax; run launch/setup.sh gpu there, on shared storage."
  need_tool sbatch "Slurm, or log in where it is"
}

main() {
  local logs made=''
  case "${1:-}" in
    '' | -h | --help)
      usage
      exit 0
      ;;
  esac
  parse "$@"
  check
  # shellcheck disable=SC2154  # check_train_args sets it
  logs=${train_workdir%/}.slurm
  # Slurm ends a job without a word if the folder of its log is missing.
  if [ -z "$dry_run" ] && [ ! -d "$logs" ]; then
    mkdir -p -- "$logs" 2>/dev/null || fail 4 "$logs cannot be made; is the storage mounted here?"
    made=yes
  fi
  run sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus_per_node" \
    "--gpus-per-node=$gpus_per_node" "--cpus-per-task=$cpus_per_task" \
    "--output=$logs/%j.txt" "${sbatch_args[@]}" \
    "$repo/launch/slurm/train.sbatch" "$repo" "$logs" "$max_restarts" "$preset" \
    "${train_args[@]}" || {
    [ -z "$made" ] || rmdir -- "$logs"
    fail 4 "sbatch refused the job; its words are above."
  }
}

main "$@"
