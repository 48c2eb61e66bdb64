#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on one TPU slice of Google Cloud: machine, installation, run, restarts, deletion.
#
#   launch/tpu_vm.sh COMMAND NAME --project=P --zone=Z [options] [-- arguments of ring train]
#
# Commands:
#   run       all of create, install and start; then follows the log, and restarts after a
#             preemption or a crash until the run is done. The same command continues.
#   create    asks for the slice, or takes the one of that name, and waits until it is ready
#   install   copies this repository to every host and sets it up
#   start     starts `ring train` on every host
#   log       streams the log (--worker=0, or a number, or all)
#   status    the slice's state, and each host's
#   stop      asks the run to save a checkpoint and to end
#   resume    what `run` does after an end: begins again if that is of use
#   delete    deletes the slice
#
# Options:
#   --type=v5p-64          slice: v5e-N, v6e-N (N chips), v5p-N (N cores, two a chip)
#   --direct               a TPU VM at once instead of a queued resource
#   --spot, --reserved     capacity that may be preempted; capacity that is reserved
#   --nfs=ADDRESS:/EXPORT  share that every host mounts at /shared
#   --preset=NAME          compiler flags (ring_jax/cluster/xla_flags.json; default: the
#                          generation's)
#   --extras=tpu           what the hosts install (setup.py); tpu,data for generated rows
#   --runtime-version=V    the hosts' image (default: the generation's)
#   --max-restarts=8       after crashes; preemptions do not count
#   --create-arg=ARG, --ssh-arg=ARG  handed to gcloud as they are; may be repeated
#   --worker=0             whose log
#   --poll-seconds=30      between two looks at a slice that is not ready
#   --dry-run              prints the commands and runs none
#
# Project and zone may come from CLOUDSDK_CORE_PROJECT and CLOUDSDK_COMPUTE_ZONE. Exit
# status: 0 done, 2 your mistake (nothing was created), 3 stopped by a check, 4 the
# environment failed, 75 interrupted.
set -euo pipefail

script=tpu_vm
# shellcheck source=launch/commands.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/commands.sh"
# shellcheck source=launch/restart_policy.sh
source "$repo/launch/restart_policy.sh"

commands='run create install start log status stop resume delete'
command='' name='' type='' preset='' nfs='' runtime_version='' worker=0
extras=tpu
accelerator_type='' cloud_state='' going=''
project=${CLOUDSDK_CORE_PROJECT:-}
zone=${CLOUDSDK_COMPUTE_ZONE:-}
kind=queued
capacity=()
create_args=()
ssh_args=()
train_args=()
max_restarts=8
poll_seconds=30
restarts=0
num_mixed=0

usage() {
  sed -n '3,/^set -/{/^set -/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
}

parse() {
  command=${1:-}
  case " $commands " in
    *" $command "*) ;;
    *) fail 2 "'$command' is no command; they are $commands (--help explains)." ;;
  esac
  name=${2:-}
  check_name "$name"
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      --project=*) project=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --direct) kind=direct ;;
      --spot | --reserved) capacity=("$1") ;;
      --nfs=*) nfs=${1#*=} ;;
      --preset=*) preset=${1#*=} ;;
      --extras=*) extras=${1#*=} ;;
      --runtime-version=*) runtime_version=${1#*=} ;;
      --max-restarts=*) max_restarts=${1#*=} ;;
      --create-arg=*) create_args+=("${1#*=}") ;;
      --ssh-arg=*) ssh_args+=("${1#*=}") ;;
      --worker=*) worker=${1#*=} ;;
      --poll-seconds=*) poll_seconds=${1#*=} ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        train_args=("$@")
        break
        ;;
      *) fail 2 "'$1' is no option (write values as --zone=Z); --help lists them." ;;
    esac
    shift
  done
}

# Everything that can be known to be wrong is found here, before the first command.
check() {
  [ -n "$project" ] ||
    fail 2 "no project: give --project=ID, as \`gcloud projects list\` names it."
  [ -n "$zone" ] ||
    fail 2 "no zone: give --zone=ZONE, one that has your chips, such as us-east5-a."
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    fail 2 "--zone=$zone is not a zone; they look like us-east5-a."
  [[ $worker =~ ^([0-9]+|all)$ ]] || fail 2 "--worker=$worker is neither a number nor all."
  [ -z "$nfs" ] || [[ $nfs =~ ^[^:/]+:/[^:]*$ ]] ||
    fail 2 "--nfs=$nfs is not a share; write --nfs=ADDRESS:/EXPORT."
  [[ ,$extras, == *,tpu,* ]] || fail 2 "--extras=$extras lacks tpu; write --extras=tpu,data."
  check_number --max-restarts "$max_restarts"
  check_number --poll-seconds "$poll_seconds"
  case $command in
    run | create | start | resume) check_type ;;
  esac
  case $command in
    run | start | resume)
      check_train_args "${train_args[@]}"
      preset=${preset:-$generation}
      ask flags -- "$preset"
      ;;
  esac
  [ -n "$dry_run" ] || check_cloud
}

check_type() {
  [ -n "$type" ] || fail 2 "no slice: give --type=TYPE, such as --type=v5p-64."
  ask slice -- "$type"
  read -r generation accelerator_type default_runtime <<<"$facts"
  runtime_version=${runtime_version:-$default_runtime}
}

check_cloud() {
  local account
  need_tool gcloud "the Google Cloud CLI"
  account=$(gcloud auth list --filter=status:ACTIVE --format='value(account)' 2>/dev/null) ||
    account=''
  [ -n "$account" ] ||
    fail 2 "no credentials: \`gcloud auth list\` shows no active account; run gcloud auth login."
}

place() {
  where=("--project=$project" "--zone=$zone")
}

# Sets `state` to absent, waiting, ready, lost or failed, `cloud_state` to the cloud's own
# word, and `found_type` to the slice's type.
look() {
  local what=(tpu-vm describe "$name" "${where[@]}" '--format=value(state,acceleratorType)')
  local answer errors
  if [ "$kind" = queued ]; then
    what=(queued-resources describe "$name" "${where[@]}"
      '--format=value(state.state,tpu.nodeSpec[0].node.acceleratorType)')
  fi
  if [ -n "$dry_run" ]; then
    print_command gcloud compute tpus "${what[@]}"
    state=ready found_type=$accelerator_type
    return 0
  fi
  errors=$(mktemp)
  if answer=$(gcloud compute tpus "${what[@]}" 2>"$errors"); then
    read -r cloud_state found_type <<<"$answer"
  elif grep -q NOT_FOUND "$errors"; then
    cloud_state=absent found_type=''
  else
    cat -- "$errors" >&2
    rm -f -- "$errors"
    fail 4 "gcloud could not describe $name; its words are above."
  fi
  rm -f -- "$errors"
  case $cloud_state in
    absent) state=absent ;;
    ACTIVE | READY) state=ready ;;
    SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED) state=lost ;;
    FAILED | DELETING | STOPPED | STOPPING | HIDDEN) state=failed ;;
    *) state=waiting ;;
  esac
}

request() {
  if [ "$kind" = queued ]; then
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
      "--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version" \
      "${capacity[@]}" "${create_args[@]}"
  else
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
      "--accelerator-type=$accelerator_type" "--version=$runtime_version" \
      "${capacity[@]}" "${create_args[@]}"
  fi || fail 4 "gcloud could not create $name; its words are above."
}

create() {
  [ -n "$dry_run" ] || look
  take
}

# Makes the slice, or takes it as `look` found it, and waits until it is ready.
take() {
  if [ -n "$dry_run" ] || [ "$state" = absent ]; then
    request
    look
  elif [ "$found_type" != "$accelerator_type" ]; then
    fail 2 "$name exists and is a $found_type, not a $accelerator_type: take another name," \
      "give --type of what it is, or delete it."
  else
    say "$name exists ($cloud_state); taking it"
  fi
  while [ "$state" = waiting ] || [ "$state" = absent ]; do
    say "$name is $cloud_state; looking again in $poll_seconds s"
    sleep "$poll_seconds"
    look
  done
  case $state in
    lost) fail 75 "$name was preempted ($cloud_state): \`resume\` or \`run\` asks anew." ;;
    failed) fail 4 "$name is $cloud_state: \`delete\` it, and create it again." ;;
  esac
}

on_hosts() {
  local whose=$1
  shift
  local line
  printf -v line ' %q' "$@"
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$whose" \
    "${ssh_args[@]}" "--command=ring_jax/launch/tpu_worker.sh$line"
}

install() {
  local archive temporary='' unpack
  archive=/tmp/ring_jax.tar.gz
  # What the checkout has now, committed or not, less what git ignores.
  if [ -z "$dry_run" ]; then
    temporary=$(mktemp -d)
    archive=$temporary/ring_jax.tar.gz
    (
      cd -- "$repo"
      git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do
          [ ! -e "$file" ] || printf '%s\0' "$file"
        done | tar --null -czf "$archive" -T -
    ) || fail 4 "the repository could not be packed; it must be a git checkout."
  fi
  # A run must not lose its code under its feet; .venv is kept, as it is slow to make.
  unpack='cd && { [ ! -e ring_jax/launch/tpu_worker.sh ] ||'
  unpack+=' ring_jax/launch/tpu_worker.sh check-idle; } && mkdir -p ring_jax &&'
  unpack+=' find ring_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + &&'
  unpack+=' tar -xzf ring_jax.tar.gz -C ring_jax'
  run gcloud compute tpus tpu-vm scp "$archive" "$name:ring_jax.tar.gz" "${where[@]}" \
    --worker=all "${ssh_args[@]}" || fail 4 "the code could not be copied to $name."
  [ -z "$temporary" ] || rm -rf -- "$temporary"
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "${ssh_args[@]}" \
    "--command=$unpack" || fail 4 "the code could not be unpacked on $name."
  on_hosts all install "$extras" ${nfs:+"$nfs"} || fail 4 "ring_jax could not be installed on $name."
}

start() {
  num_mixed=0
  on_hosts all start "$preset" "${train_args[@]}" ||
    fail 4 "the run could not be started on every host of $name."
}

# Sets `reports` to the hosts' words: running, idle or an exit status each. Fails where a
# host does not answer.
ask_hosts() {
  local answer host
  reports=()
  if [ -n "$dry_run" ]; then
    on_hosts all status
    reports=(idle)
    return 0
  fi
  answer=$(on_hosts all status) || return 1
  while read -r _ host state status; do
    say "$host: $state ${status:-}"
    reports+=("${status:-$state}")
  done < <(grep '^ring-worker ' <<<"$answer")
  [ ${#reports[@]} -gt 0 ]
}

# Gets a preempted slice back. A slice that was preempted cannot be started again: it is
# deleted and asked for anew, and the run continues from its folder on the share.
replace() {
  say "$name was preempted; asking for it anew"
  delete
  create
  install
}

delete() {
  if [ "$kind" = queued ]; then
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi || fail 4 "gcloud could not delete $name; its words are above."
}

# Begins again what has ended, if that is of use; ends the script where it is not. Sets
# `going` where the run goes on already.
resume() {
  local tries=0
  going=''
  look
  until [ "$state" = lost ] || { [ "$state" = ready ] && ask_hosts; }; do
    tries=$((tries + 1))
    case $state in
      absent | failed) fail 4 "$name is $cloud_state; \`delete\` it and use \`run\`." ;;
      ready) [ "$tries" -lt 5 ] || fail 4 "the hosts of $name do not answer." ;;
    esac
    sleep "$poll_seconds"
    look
  done
  if [ "$state" = lost ]; then
    replace
  else
    judge_reports
  fi
  [ -n "$going" ] || start
}

judge_reports() {
  case " ${reports[*]} " in
    *' running '*)
      going=yes
      stop_the_rest
      return 0
      ;;
    *' idle '*) return 0 ;;
  esac
  judge "${reports[@]}"
  # shellcheck disable=SC2154  # judge sets both
  case $verdict in
    done)
      say "done"
      exit 0
      ;;
    stop)
      say "ring train ended with status $verdict_status; the log says why"
      exit "$verdict_status"
      ;;
    retry)
      restarts=$((restarts + 1))
      [ "$restarts" -le "$max_restarts" ] ||
        fail 4 "ring train failed $restarts times, last with status $verdict_status."
      say "ring train failed with status $verdict_status; restart $restarts of $max_restarts"
      ;;
    again) say "ring train was interrupted; starting it again" ;;
  esac
}

# Where one process failed, the others may wait for it forever. They get the time between
# two looks, as they may be saving.
stop_the_rest() {
  local report
  for report in "${reports[@]}"; do
    case $report in
      running | idle | 0) ;;
      *)
        num_mixed=$((num_mixed + 1))
        [ "$num_mixed" -gt 1 ] || return 0
        say "a host ended with status $report; stopping the others"
        on_hosts all stop || true
        return 0
        ;;
    esac
  done
}

# A slice that trains already is left alone; one that is there gets the code of now.
begin() {
  [ -n "$dry_run" ] || look
  if [ -z "$dry_run" ] && [ "$state" = lost ]; then
    replace
  else
    take
    if [ -z "$dry_run" ] && ask_hosts; then
      case " ${reports[*]} " in *' running '*) return 0 ;; esac
    fi
    install
  fi
  start
}

run_to_the_end() {
  begin
  while :; do
    # The stream ends with the run, with the connection or with the host: which of them it
    # was, resume finds out.
    on_hosts 0 log || true
    if [ -n "$dry_run" ]; then
      on_hosts all status
      return 0
    fi
    resume
    [ -z "$going" ] || sleep "$poll_seconds"
  done
}

main() {
  case " ${*:-} " in
    *' --help '* | *' -h '* | '  ')
      usage
      exit 0
      ;;
  esac
  parse "$@"
  check
  place
  trap 'say "interrupted; the same command continues"; exit 75' INT TERM
  case $command in
    run) run_to_the_end ;;
    log) on_hosts "$worker" log ;;
    status)
      look
      say "$name is ${cloud_state:-$state}"
      [ "$state" != ready ] || ask_hosts || fail 4 "a host of $name does not answer."
      ;;
    stop) on_hosts all stop ;;
    *) "$command" ;;
  esac
}

main "$@"
