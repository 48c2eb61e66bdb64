#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains in N processes on this machine, by the code path of a pod.
#
#   launch/local_pod.sh N [--devices-per-process=K] [--dry-run] [operands of ring train]
#
#   launch/local_pod.sh 2 --config=configs/quickstart.py --workdir=runs/pod
#
# Each process has K emulated CPU devices (default 1), and the mesh is made of all N x K.
# A line of process I begins with [I]. When one process ends in failure the others end,
# too, and its exit status is this script's; Ctrl-C and SIGTERM are passed on, and the
# same command continues the run. RING_START_TIMEOUT: seconds to wait for all processes to
# come. RING_PORT: where they meet; a free port unless set. --dry-run prints the commands.
# Exit status: as ring train, 2 for a wrong N or K.
set -euo pipefail

repo=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# A process hears that another has ended, and says so, within some ten seconds; one that
# still waits for the others to come is told to stop after so many, and killed after twice.
readonly grace_seconds=20

fail() {
  printf 'local_pod: error: %s\n' "$*" >&2
  exit 2
}

help() {
  sed -n '3,/^set /p' -- "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'
}

# The interpreter that runs ring: the repository's, unless PYTHON names another.
find_python() {
  local found=${PYTHON:-$repo/.venv/bin/python}
  type -P -- "$found" || fail "$found does not run; run launch/setup.sh or set PYTHON."
}

free_port() {
  "$1" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

pids=()       # of the processes
printers=()   # of what puts [I] before their lines
first_failure=''
is_interrupted=''

start() {
  local index=$1
  shift
  # The printer outlives Ctrl-C, which the terminal sends to all, to print the last words:
  # it is born with the signals ignored, for one may come before its first command.
  trap '' HUP INT TERM
  exec {pipe}> >(exec sed -u "s/^/[$index] /")
  trap 'is_interrupted=1' HUP INT TERM
  printers+=($!)
  RING_PROCESS_ID=$index "$@" >&"$pipe" 2>&1 {pipe}>&- </dev/null &
  pids+=($!)
  exec {pipe}>&-
}

terminate_all() {
  kill -TERM "${pids[@]}" 2>/dev/null || true
}

# Ends the given processes, which should have ended by themselves.
end_after_grace() {
  sleep "$grace_seconds"
  kill -TERM "$@" 2>/dev/null || true
  sleep "$grace_seconds"
  kill -KILL "$@" 2>/dev/null || true
}

say_killed() {
  local index
  for index in "${!pids[@]}"; do
    [ "${pids[index]}" != "$1" ] || echo "[$index] local_pod: ended by signal $2" >&2
  done
}

# Waits for all processes, whatever interrupts the wait; the first failure sets the clock.
wait_for_all() {
  local pid status guard=''
  local -A left=()
  for pid in "${pids[@]}"; do left[$pid]=1; done
  while [ ${#left[@]} -gt 0 ]; do
    status=0
    pid=''
    # Bash would tell of a job that was killed in a line of its own making.
    { wait -n -p pid "${!left[@]}"; } 2>/dev/null || status=$?
    # Without a process's number it was a signal that ended the wait.
    [ -n "${pid:-}" ] || continue
    unset "left[$pid]"
    if [ "$status" -ne 0 ] && [ -z "$first_failure" ]; then
      first_failure=$status
      [ "$status" -le 128 ] || say_killed "$pid" $((status - 128))
      end_after_grace "${!left[@]}" >/dev/null 2>&1 &
      guard=$!
    fi
  done
  # Its whole group: the sleep, too.
  [ -z "$guard" ] || kill -- "-$guard" 2>/dev/null || true
}

main() {
  [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -ge 51 ] ||
    fail "bash $BASH_VERSION cannot wait for one of several; it takes 5.1 or newer."
  local num_processes='' num_devices=1 is_dry='' python word args=()
  for word in "$@"; do
    case $word in
      -h | --help)
        help
        return
        ;;
      --devices-per-process=*) num_devices=${word#*=} ;;
      --dry-run) is_dry=1 ;;
      *)
        if [ -z "$num_processes" ]; then num_processes=$word; else args+=("$word"); fi
        ;;
    esac
  done
  [[ $num_processes =~ ^[1-9][0-9]{0,2}$ ]] ||
    fail "'$num_processes' is not a number of processes from 1 to 999;" \
      "launch/local_pod.sh --help explains."
  [[ $num_devices =~ ^[1-9][0-9]{0,2}$ ]] ||
    fail "--devices-per-process=$num_devices is not a number from 1 to 999."
  python=$(find_python)

  export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} RING_NUM_PROCESSES=$num_processes
  export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$num_devices"
  RING_COORDINATOR_ADDRESS=127.0.0.1:${RING_PORT:-$(free_port "$python")}
  export RING_COORDINATOR_ADDRESS
  if [ -n "$is_dry" ]; then
    for ((word = 0; word < num_processes; word++)); do
      echo "RING_PROCESS_ID=$word RING_NUM_PROCESSES=$num_processes" \
        "RING_COORDINATOR_ADDRESS=$RING_COORDINATOR_ADDRESS XLA_FLAGS='$XLA_FLAGS'" \
        "$(printf %q "$python") -m ring_jax.cli.main train ${args[*]@Q}"
    done
    return
  fi

  # Each process in a group of its own: a terminal's Ctrl-C would reach them beside the
  # signal that is passed on, and a second one ends a run without a checkpoint.
  set -m
  for ((word = 0; word < num_processes; word++)); do
    start "$word" "$python" -m ring_jax.cli.main train ${args[@]+"${args[@]}"}
  done
  trap terminate_all HUP INT TERM
  # A signal while they were started is passed on to all of them, now.
  [ -z "$is_interrupted" ] || terminate_all
  wait_for_all
  wait "${printers[@]}" || true
  return "${first_failure:-0}"
}

main "$@"
