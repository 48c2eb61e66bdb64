#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One host's part of a run on TPU VMs; launch/tpu_vm.sh calls it on every host.
#
#   launch/tpu_worker.sh install EXTRAS [ADDRESS:/EXPORT]
#                                                    sets up .venv, mounts NFS at /shared
#   launch/tpu_worker.sh start PRESET [arguments]    starts `ring train`, and returns
#   launch/tpu_worker.sh status                      running, idle, or exited STATUS
#   launch/tpu_worker.sh log                         follows the log until the run ends
#   launch/tpu_worker.sh stop [SECONDS]              asks the run to save and to end, and
#                                                    kills it after 120 seconds
#   launch/tpu_worker.sh check-idle                  fails while a run is going
#
# The log is in ~/ring_jax_run/log.txt, beside the process id and the exit status.
set -euo pipefail

script=tpu_worker
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"
folder=$HOME/ring_jax_run

# A number alone proves nothing: after a reboot another process may have it. The parent
# outlives the run until the status is noted.
is_running() {
  [ -e "$folder/pid" ] && [ ! -e "$folder/status" ] &&
    { is_process pid train || is_process parent _run; }
}

is_process() {
  [ -e "$folder/$1" ] && grep -q "$2" "/proc/$(cat -- "$folder/$1")/cmdline" 2>/dev/null
}

# TPU images ship an older Python than ring_jax needs; uv brings its own.
provide_python() {
  type -P python3.12 >/dev/null && return 0
  python3 -m pip install --quiet --user uv
  "$HOME/.local/bin/uv" python install 3.12
  PYTHON=$("$HOME/.local/bin/uv" python find 3.12)
  export PYTHON
}

mount_share() {
  mountpoint --quiet /shared && return 0
  type -P mount.nfs >/dev/null || sudo apt-get install --yes --quiet nfs-common
  sudo mkdir -p /shared
  # Hard: a write waits for a slow server instead of failing the run.
  sudo mount -t nfs -o rw,hard "$1" /shared
}

install_here() {
  provide_python
  "$here/setup.sh" "$1"
  [ -z "${2:-}" ] || mount_share "$2"
}

start() {
  if is_running; then
    say "already running"
    return 0
  fi
  mkdir -p -- "$folder"
  rm -f -- "$folder/status" "$folder/pid"
  cd -- "$repo"
  # A session of its own, and no terminal: the run outlives this connection.
  setsid "$here/tpu_worker.sh" _run "$@" </dev/null >>"$folder/log.txt" 2>&1 &
  # Whoever asks for the status next must not find an idle host.
  while [ ! -e "$folder/pid" ]; do sleep 0.05; done
}

# The run's parent: it notes the exit status. A signal sent to the whole session must not
# end it before that, so that it only interrupts its waiting.
run_and_note() {
  local child status=0
  trap : TERM INT HUP
  printf -- '--- %s: ring train %s\n' "$(date -u +%FT%TZ)" "${*:2}"
  "$here/train.sh" "$@" &
  child=$!
  printf '%s\n' "$$" >"$folder/parent"
  printf '%s\n' "$child" >"$folder/pid.new"
  mv -- "$folder/pid.new" "$folder/pid"
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  printf '%s\n' "$status" >"$folder/status.new"
  mv -- "$folder/status.new" "$folder/status"
}

# The line's first word keeps it apart from what gcloud says between hosts.
status() {
  local state=idle
  if is_running; then
    state=running
  elif [ -e "$folder/status" ]; then
    state="exited $(cat -- "$folder/status")"
  elif [ -e "$folder/pid" ]; then
    state='exited 137'  # the host went down under it
  fi
  printf 'ring-worker %s %s\n' "$(uname -n)" "$state"
}

log() {
  [ -e "$folder/log.txt" ] || fail 2 "nothing was started here yet."
  if is_running; then
    tail -n +1 -F --pid="$(cat -- "$folder/pid")" -- "$folder/log.txt"
  else
    cat -- "$folder/log.txt"
  fi
}

# A process whose partner died can wait for it forever, and never see the signal.
stop() {
  local patience=${1:-120}
  is_running || return 0
  kill -TERM "$(cat -- "$folder/pid")" 2>/dev/null || true  # it may just have ended
  for ((second = 0; second < patience; second++)); do
    sleep 1
    is_running || return 0
  done
  kill -KILL "$(cat -- "$folder/pid")" 2>/dev/null || true
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  install) install_here "$@" ;;
  start) start "$@" ;;
  _run) run_and_note "$@" ;;
  status) status ;;
  log) log ;;
  stop) stop "$@" ;;
  check-idle) ! is_running || fail 2 "a run is going here; stop it before you install." ;;
  *)
    sed -n '3,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    case $command in -h | --help) exit 0 ;; *) exit 2 ;; esac
    ;;
esac
