# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# How the launch scripts refuse, ask for facts and run commands; sourced by them, after they
# have set `script`, the name that their lines begin with.
# What is set here for them: repo, dry_run, facts, train_workdir.
# shellcheck disable=SC2034,SC2154

repo=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
dry_run=''
python=''

# Ends with a status and one line: 2 is the user's mistake, 4 the environment's failure.
fail() {
  local status=$1
  shift
  printf '%s: error: %s\n' "$script" "$*" >&2
  exit "$status"
}

say() {
  printf '%s: %s\n' "$script" "$*" >&2
}

# Prints a command so that it can be pasted into a shell.
print_command() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[][A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Runs a command, or prints it where --dry-run was given.
run() {
  if [ -n "$dry_run" ]; then
    print_command "$@"
  else
    "$@"
  fi
}

# Asks ring_jax.cluster, which needs nothing installed (-S: and starts without looking for
# it); its refusal becomes ours.
# `facts` gets the answer: in a subshell `fail` could not end the script.
ask() {
  local answer status=0
  [ -n "$python" ] || find_python
  answer=$(PYTHONPATH=$repo "$python" -S -m ring_jax.cluster "$@" 2>&1) || status=$?
  case $status in
    0) facts=$answer ;;
    2) fail 2 "$answer" ;;
    *) printf '%s\n' "$answer" >&2 && exit "$status" ;;  # a bug of ours: all of it
  esac
}

find_python() {
  local is_new='import sys; assert sys.version_info >= (3, 10)'
  for python in "$repo/.venv/bin/python" python3 ''; do
    ! "$python" -S -c "$is_new" 2>/dev/null || return 0
  done
  fail 4 "no Python >= 3.10 runs here; install one, or run launch/setup.sh."
}

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  fail 4 "bash $BASH_VERSION is too old; install bash >= 4.4 (on macOS: brew install bash)."
fi

need_tool() {
  type -P "$1" >/dev/null || fail 4 "$1 is not on PATH; install $2."
}

# Names of TPUs, of JobSets and of jobs alike: what DNS allows.
check_name() {
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail 2 "'$1' cannot be a name: take up to 40 of a-z, 0-9 and -, a letter first."
}

check_number() {
  [[ $2 =~ ^[0-9]{1,6}$ ]] || fail 2 "$1=$2 is not a number; write $1=8, for instance."
}

# Checks the arguments of `ring train` for what no launch can do without.
check_train_args() {
  local word config='' workdir=''
  for word in "$@"; do
    case $word in
      --config=?*) config=${word#*=} ;;
      --workdir=?*) workdir=${word#*=} ;;
    esac
  done
  [ -n "$config" ] && [ -n "$workdir" ] ||
    fail 2 "give ring train its arguments after --, with --config=FILE and" \
      "--workdir=FOLDER: $script ... -- --config=my_run.py --workdir=/shared/run."
  case $workdir in
    *://*)
      fail 2 "--workdir=$workdir is an address, and ring writes to folders: mount the" \
        "bucket or share on every host and name a folder on it, such as /shared/run."
      ;;
    /*) ;;
    *)
      fail 2 "--workdir=$workdir is relative, but all hosts must find the same folder:" \
        "name it from the root, on storage that they share, such as /shared/run."
      ;;
  esac
  train_workdir=$workdir
}
