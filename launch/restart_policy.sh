# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What to do after a run ended, by the exit statuses of its processes; sourced by the
# scripts that restart. GKE's manifest says the same in its own words.
# shellcheck disable=SC2034  # verdict and verdict_status are for them
#
# The statuses are those of ring_jax/cli/status.py: 0 done, 2 the user's mistake, 3 stopped
# by a check, 4 the environment failed, 75 preempted or interrupted; others are crashes.

# Sets `verdict` to done, stop, again (not counted: a preemption) or retry (counted), and
# `verdict_status` to the status that the launch ends with if it is not restarted.
judge() {
  local status
  verdict='done'
  verdict_status=0
  # One process that ends makes the others end in their own ways, so the rarest word
  # decides: a mistake over a check over a crash over a preemption. What is not counted may
  # go on forever, so that nothing else may hide behind it.
  for status in "$@"; do
    case $status:$verdict in
      2:*) verdict=stop verdict_status=2 && return 0 ;;
      3:*) verdict=stop verdict_status=3 ;;
      0:* | *:stop | 75:retry) ;;
      75:*) verdict=again verdict_status=75 ;;
      *) verdict=retry verdict_status=$status ;;
    esac
  done
}
