#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on TPU slices of a GKE cluster that has JobSet (>= 0.10) and the node pools.
#
#   launch/gke/jobset.sh COMMAND NAME [options] [-- arguments of ring train]
#
# Commands:
#   render    prints the manifest, launch/gke/jobset.yaml with its fields filled in
#   submit    applies it; GKE restarts the run by its exit status
#   log       streams the log of the first host of the first slice
#   status    the run's state and its pods
#   delete    deletes the run; pods get 300 seconds to save a checkpoint
#
# Options:
#   --type=v5e-256         slice: v5e-N, v6e-N (N chips), v5p-N, tpu7x-N (N cores, two a chip)
#   --slices=1             how many of them, joined over the data centre's network
#   --image=IMAGE          built by launch/Dockerfile
#   --volume-claim=CLAIM   the claim that pods mount at /shared; --workdir must be below it
#   --namespace=default
#   --queue=multislice-queue  Kueue's local queue (this is xpk's); unused without Kueue
#   --preset=NAME          compiler flags (ring_jax/cluster/xla_flags.json; default: the
#                          generation's)
#   --max-restarts=8       after crashes; preemptions do not count
#   --context=CONTEXT      kubectl's, where it is not the current one
#   --dry-run              prints the commands, and the manifest, and runs none
#
# Exit status: 0 done, 2 your mistake (nothing was created), 4 the environment failed.
set -euo pipefail

script=jobset
# shellcheck source=launch/commands.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../commands.sh"

commands='render submit log status delete'
command='' name='' type='' slices=1 image='' volume_claim='' namespace=default
queue=multislice-queue preset='' max_restarts=8 context=''
train_args=()

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
      --type=*) type=${1#*=} ;;
      --slices=*) slices=${1#*=} ;;
      --image=*) image=${1#*=} ;;
      --volume-claim=*) volume_claim=${1#*=} ;;
      --namespace=*) namespace=${1#*=} ;;
      --queue=*) queue=${1#*=} ;;
      --preset=*) preset=${1#*=} ;;
      --max-restarts=*) max_restarts=${1#*=} ;;
      --context=*) context=${1#*=} ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        train_args=("$@")
        break
        ;;
      *) fail 2 "'$1' is no option (write values as --slices=2); --help lists them." ;;
    esac
    shift
  done
}

# Everything that can be known to be wrong is found here, before the first command.
check() {
  check_name "$namespace"
  check_name "$queue"
  case $command in
    render | submit) check_manifest ;;
  esac
  [ "$command" = render ] || [ -n "$dry_run" ] || check_cluster
}

check_manifest() {
  [ -n "$type" ] || fail 2 "no slice: give --type=TYPE, such as --type=v5e-256."
  [ -n "$image" ] || fail 2 "no image: build launch/Dockerfile, push it, and give --image=IMAGE."
  [ -n "$volume_claim" ] ||
    fail 2 "no volume: give --volume-claim=CLAIM, where the run folder outlives the pods."
  check_name "$volume_claim"
  check_number --slices "$slices"
  [ "$slices" -ge 1 ] || fail 2 "--slices=$slices is too few; give 1 or more."
  check_number --max-restarts "$max_restarts"
  check_train_args "${train_args[@]}"
  # shellcheck disable=SC2154  # check_train_args sets it
  [[ $train_workdir == /shared/* ]] ||
    fail 2 "--workdir=$train_workdir would be lost with its pod; name one below /shared."
  ask jobset "--template=$repo/launch/gke/jobset.yaml" "--type=$type" "--name=$name" \
    "--namespace=$namespace" "--image=$image" "--volume-claim=$volume_claim" \
    "--queue=$queue" "--slices=$slices" "--max-restarts=$max_restarts" \
    ${preset:+"--preset=$preset"} -- "${train_args[@]}"
}

check_cluster() {
  need_tool kubectl "the Kubernetes command line (gcloud components install kubectl)"
  [ -n "$context" ] || kubectl config current-context >/dev/null 2>&1 ||
    fail 2 "no credentials: kubectl has no current cluster; run" \
      "gcloud container clusters get-credentials CLUSTER --location=L --project=P."
}

submit() {
  # The whole manifest was made before: a refused one has created nothing.
  # shellcheck disable=SC2154  # `ask` sets `facts`
  if [ -n "$dry_run" ]; then
    print_command "${kubectl[@]}" apply --filename=-
    printf '%s\n' "$facts"
  else
    "${kubectl[@]}" apply --filename=- <<<"$facts" ||
      fail 4 "kubectl could not create $name; its words are above."
  fi
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
  kubectl=(kubectl ${context:+"--context=$context"} "--namespace=$namespace")
  case $command in
    render) printf '%s\n' "$facts" ;;
    submit) submit ;;
    log) run "${kubectl[@]}" logs --follow --tail=-1 "job/$name-slice-job-0" --container=ring ;;
    status)
      run "${kubectl[@]}" get jobset "$name"
      run "${kubectl[@]}" get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" \
        --output=wide
      ;;
    delete) run "${kubectl[@]}" delete jobset "$name" ;;
  esac
}

main "$@"
