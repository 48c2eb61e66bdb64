#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs one `ring train` as several processes of this machine: a pod to try things on.
#
#   launch/local_pod.sh PROCESSES [--preset=none] [--port=8476] [--dry-run] -- arguments
#
# It is also how a launcher that jax does not know tells the processes about each other:
# RING_COORDINATOR_ADDRESS (the host and port of process 0), RING_NUM_PROCESSES and
# RING_PROCESS_ID. Lines of output begin with the process's number. The first process that
# fails ends the others. Exit status: that of the run, by launch/restart_policy.sh.
set -euo pipefail

script=local_pod
# shellcheck source=launch/commands.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/commands.sh"
# shellcheck source=launch/restart_policy.sh
source "$repo/launch/restart_policy.sh"

preset=none port=8476 train_args=() children=() stopped=''

parse() {
  num_processes=$1
  check_number PROCESSES "$num_processes"
  [ "$num_processes" -ge 1 ] || fail 2 "$num_processes processes are too few; give 1 or more."
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --preset=*) preset=${1#*=} ;;
      --port=*) port=${1#*=} ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        train_args=("$@")
        break
        ;;
      *) fail 2 "'$1' is no option; --help lists them." ;;
    esac
    shift
  done
  check_number --port "$port"
  check_train_args "${train_args[@]}"
  ask flags -- "$preset"
}

# Once: a second signal ends ring before it has saved.
stop_all() {
  [ -z "$stopped" ] || return 0
  stopped=yes
  kill -TERM "${children[@]}" 2>/dev/null || true
}

main() {
  local process child status statuses=() pending alive command
  case "${1:-}" in
    '' | -h | --help)
      sed -n '3,/^set -/{/^set -/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
  esac
  parse "$@"
  # Process groups of their own, so that Ctrl-C reaches this script alone.
  set -m
  trap stop_all INT TERM
  for ((process = 0; process < num_processes; process++)); do
    command=(env "RING_COORDINATOR_ADDRESS=127.0.0.1:$port"
      "RING_NUM_PROCESSES=$num_processes" "RING_PROCESS_ID=$process"
      "$repo/launch/train.sh" "$preset" "${train_args[@]}")
    if [ -n "$dry_run" ]; then
      print_command "${command[@]}"
      continue
    fi
    "${command[@]}" > >(sed -u "s/^/$process: /") 2>&1 &
    children+=($!)
  done
  pending=("${children[@]}")
  while [ ${#pending[@]} -gt 0 ]; do
    alive=()
    for child in "${pending[@]}"; do
      if kill -0 "$child" 2>/dev/null; then
        alive+=("$child")
        continue
      fi
      status=0
      wait "$child" || status=$?
      statuses+=("$status")
      [ "$status" = 0 ] || stop_all
    done
    pending=("${alive[@]}")
    [ ${#pending[@]} -eq 0 ] || sleep 0.2
  done
  judge "${statuses[@]}"
  # shellcheck disable=SC2154  # judge sets it
  exit "$verdict_status"
}

main "$@"
