#!/usr/bin/env bash
# Do the tests pass on any machine? Each row runs them as another machine, user or shell would; one
# line a row, exit status 1 if any fails. By default a row runs the tests that its condition could
# touch, about a quarter of an hour in all.
#
#   tests/anywhere.sh [WORDS FOR PYTEST]         these in each row, as in tests/anywhere.sh tests/run
#   ANYWHERE_ALL=1     the whole suite in each row
#   ANYWHERE_ROWS=RE   only the rows whose name matches, as in ANYWHERE_ROWS='one core|umask'
#   PYTHON=…           the Python of an environment with everything installed; .venv/bin/python
#   JOBS=…             processes of pytest; 3
#
# What a machine cannot do (no setpriv, no root) is said and counted as untested. All happens in a
# copy of the files that git knows, so this checkout stays as it is.
set -uo pipefail
{ # Read whole before it runs, so that it can be edited meanwhile.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
jobs=${JOBS:-3}
given=("$@")
"$python" -c 'import mlflow_track, pytest, xdist' || { echo "make test installs what this needs"; exit 1; }

# Where every user may enter: a private TMPDIR is not such a place.
work=$(TMPDIR=/tmp mktemp -d -t anywhere-XXXXXX)
chmod 755 "$work"
trap 'rm -rf "$work" "${memory:-}"' EXIT
failed=0 untested=0 passed=0

# --- The rows are made of these ---

copy() { # FOLDER: the files of this checkout, in a repository that belongs to whoever copies
    mkdir -p "$1"
    git ls-files -z --cached --others --exclude-standard \
        | while IFS= read -r -d '' file; do [ ! -f "$file" ] || printf '%s\0' "$file"; done \
        | tar --null --files-from=- --create | tar --extract --directory "$1"
    git -C "$1" init --quiet
}

is_wanted() { # NAME
    [[ $1 =~ ${ANYWHERE_ROWS:-.} ]]
}

say() { # NAME WHAT: one line
    printf '%-42s %s\n' "$1" "$2"
}

cannot() { # NAME WHY
    is_wanted "$1" || return 0
    untested=$((untested + 1))
    say "$1" "UNTESTED: $2"
}

# NAME TESTS COMMAND…: run TESTS by way of a command that gets the words of pytest. It must end with
# status $ends_with (0), and have printed $wanted.
row() {
    local name=$1 log status words
    is_wanted "$name" || return 0
    read -ra words <<< "$2"
    [ -z "${ANYWHERE_ALL:-}" ] || words=(tests)
    [ ${#given[@]} = 0 ] || words=("${given[@]}")
    log="$work/$((passed + failed)).log"
    (
        cd "${checkout:-$work/checkout}" || exit
        PYTHONPATH=$PWD "${@:3}" "$python" -m pytest -q --color=no -p no:cacheprovider \
            -n "$jobs" --dist loadgroup "${words[@]}"
    ) > "$log" 2>&1
    status=$?
    if [ "$status" = "${ends_with:-0}" ] && grep -qE "${wanted:-passed}" "$log"; then
        passed=$((passed + 1))
        say "$name" "ok: $(tail -n 1 "$log")"
        return
    fi
    failed=$((failed + 1))
    say "$name" "FAILED with status $status: $(tail -n 1 "$log")"
    grep -E '^(FAILED|ERROR)' "$log" || tail -n 20 "$log"
    local kept
    kept=/tmp/anywhere-$(tr -c 'a-z0-9\n' - <<< "${name,,}").log
    cp "$log" "$kept"
    echo "  all of it: $kept"
}

has() { command -v "$1" > /dev/null; }

as_user() { # NUMBER COMMAND…: with no right of root, in a view of the files where Python is in reach
    # A folder on the way to Python that others may not enter, such as /root, is covered by an empty
    # one that holds nothing but Python.
    unshare --mount bash -c '
        set -e
        user=$1 stash=$2 places=$3; shift 3
        closed=() kept=()
        for place in $places; do
            way=$place
            while [ "$way" != / ]; do
                way=$(dirname "$way")
                [ $((0$(stat -c %a "$way") & 1)) = 1 ] || top=$way
            done
            [ -n "${top:-}" ] || continue
            mkdir -p "$stash/${#kept[@]}"
            mount --bind "$place" "$stash/${#kept[@]}"
            kept+=("$place") closed+=("$top") top=
        done
        for top in $(printf "%s\n" ${closed[@]+"${closed[@]}"} | sort -u); do
            mount -t tmpfs -o mode=755 tmpfs "$top"
        done
        for number in "${!kept[@]}"; do
            mkdir -p "${kept[number]}"
            mount --bind "$stash/$number" "${kept[number]}"
        done
        exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
    ' as_user "$1" "$work/stash" "$places" "${@:2}"
}

# --- What a condition could touch ---

processes="tests/run tests/record tests/checkpoint/test_ranks.py tests/checkpoint/test_kills.py"
shown="tests/cli tests/analysis tests/record tests/train/test_progress.py tests/train/test_data.py"
files="tests/run tests/record tests/checkpoint/test_store.py tests/checkpoint/test_saving.py
    tests/mirror/test_companion.py tests/servers"
files=$(tr -s '\n ' ' ' <<< "$files")

copy "$work/checkout"
places=$("$python" -c 'import sys; print(sys.prefix, sys.base_prefix)')

# --- Another machine ---

row "bf16 off" "tests/train tests/test_docs.py::test_the_blocks_of_a_document_run[README.md]" \
    env ATEN_CPU_CAPABILITY=avx2
if has taskset; then
    row "one core" "$processes tests/train/test_job.py" taskset -c 0
else
    cannot "one core" "taskset is missing"
fi
row "LC_ALL=C" "$shown" env -u LANG LC_ALL=C
row "14 hours east (Pacific/Kiritimati)" "$shown" env TZ=Pacific/Kiritimati
row "summer time (America/New_York)" "$shown" env TZ=America/New_York
if [ -d /dev/shm ]; then
    memory=$(mktemp -d /dev/shm/anywhere-XXXXXX)
    row "TMPDIR on another file system" "$files" env TMPDIR="$memory"
else
    cannot "TMPDIR on another file system" "there is no /dev/shm"
fi

# --- Another user ---

for number in 65534 54321; do
    # The other number has no entry in /etc/passwd, as with `docker run --user`.
    name="nobody" tests="$files tests/mirror/test_store.py"
    [ "$number" = 65534 ] || name="a user without a name" tests="tests/run tests/servers"
    home="$work/$number"
    if [ "$(id -u)" != 0 ]; then
        cannot "$name" "only root can become another user"
    elif ! has setpriv || ! has unshare; then
        cannot "$name" "setpriv or unshare is missing"
    else
        copy "$home/checkout"
        mkdir "$home/tmp"
        chown -R "$number:$number" "$home"
        set -- as_user "$number" env HOME="$home" TMPDIR="$home/tmp" USER= LOGNAME=
        if why=$("$@" "$python" -c 'import torch, pytest' 2>&1); then
            checkout="$home/checkout" row "$name" "$tests" "$@"
        else
            cannot "$name" "$(tail -n 1 <<< "$why")"
        fi
    fi
done

# --- Another shell ---

row "signals ignored (INT, HUP, TERM, PIPE)" "$processes tests/train/test_job.py tests/cli" \
    sh -c "trap '' INT HUP TERM PIPE USR1; exec \"\$@\"" sh
row "stdin closed" "$processes tests/mirror/test_companion.py" sh -c 'exec "$@" <&-' sh
row "umask 077" "$files" sh -c 'umask 077; exec "$@"' sh
# Below a folder with a .env and a repository, with variables that send runs elsewhere.
nearby="$work/nearby"
copy "$nearby/checkout"
mkdir "$nearby/tmp"
git -C "$nearby" init --quiet
printf 'MLFLOW_TRACK_BACKEND=off\nMLFLOW_TRACK_DIR=/absent\n' | tee "$nearby/.env" \
    "$nearby/tmp/.env" > "$nearby/checkout/.env"
checkout="$nearby/checkout" row "variables, a .env, a repository nearby" "$files" \
    env TMPDIR="$nearby/tmp" MLFLOW_TRACKING_URI=http://127.0.0.1:9 MLFLOW_TRACK_BACKEND=off \
    MLFLOW_RUN_ID=absent EXPERIMENT_NAME=elsewhere RANK=1 WORLD_SIZE=2 SLURM_PROCID=1 \
    OMPI_COMM_WORLD_RANK=1 PMI_RANK=1 GIT_CONFIG_GLOBAL=/absent MPLBACKEND=absent COLUMNS=20 \
    TERM=dumb FORCE_COLOR=1 PYTHONSTARTUP=/absent http_proxy=http://127.0.0.1:9

# --- Neither Chromium nor PostgreSQL ---

mkdir "$work/bin"
IFS=: read -ra folders <<< "$PATH"
for folder in "${folders[@]}"; do
    find "$folder/" -maxdepth 1 \( -type f -o -type l \) ! -name 'chrom*' ! -name 'initdb*' \
        ! -name 'pg_*' -exec ln -s -t "$work/bin" {} + 2> /dev/null
done
lacking='^skipped .*(PostgreSQL is not.*Chromium is not|Chromium is not.*PostgreSQL is not)'
wanted=$lacking row "no Chromium, no PostgreSQL" "tests/servers tests/browser" \
    env CI= PATH="$work/bin"
ends_with=1 wanted='(PostgreSQL|Chromium) is not installed' row "the same in CI fails" "tests/servers tests/browser" \
    env CI=true PATH="$work/bin"

# --- Another Python: what is written must be its language; `make test PYTHON=…` runs the tests ---

for version in 3.10 3.11 3.12 3.13; do
    name="the sources under Python $version"
    # pyenv has versions that are not on the PATH.
    for another in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        "$another" -c '' 2> /dev/null && break
        another=
    done
    if [ -z "$another" ]; then
        cannot "$name" "there is no python$version"
    elif is_wanted "$name"; then
        if said=$(cd "$work/checkout" && "$another" -m compileall -q -f \
            mlflow_track train tests benchmarks 2>&1); then
            passed=$((passed + 1))
            say "$name" "ok"
        else
            failed=$((failed + 1))
            say "$name" "FAILED"
            echo "$said"
        fi
    fi
done

echo "$passed rows passed, $failed failed, $untested untested"
[ "$failed" = 0 ]
exit
}
