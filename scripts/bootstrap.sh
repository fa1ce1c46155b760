# Sourced by the scripts beside it: makes .venv from the pinned lock, once per change of lock, pyproject or Python.
# Needs Python >= 3.11 and nothing else; touches only the checkout and pip's own cache. A second call costs a few
# milliseconds: one stamp file is compared.
#
#   mesh_bootstrap runtime    what `mesh-llm` itself needs
#   mesh_bootstrap dev        that, and what the tests and checks need

mesh_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
mesh_venv=${MESH_LLM_VENV:-$mesh_root/.venv}

mesh_say() { printf '%s\n' "$*" >&2; }
mesh_die() { mesh_say "mesh-llm: $*"; exit 1; }

# Runs a command and says on stderr what it is for, and every few seconds that it still runs. Its output goes to stderr,
# too: the stdout of `mesh-llm` may be read by a program.
mesh_step() {
    local what=$1 begun=$SECONDS rc=0
    shift
    mesh_say "$what ..."
    (
        exec >/dev/null
        nap=
        trap 'kill $nap 2>/dev/null; exit 0' TERM
        while kill -0 $$ 2>/dev/null; do
            sleep "${MESH_LLM_PROGRESS_SECONDS:-10}" &
            nap=$!
            wait "$nap"
            mesh_say "  ... $((SECONDS - begun)) s"
        done
    ) &
    mesh_beat=$!
    "$@" >&2 || rc=$?
    mesh_end_beat
    return "$rc"
}

mesh_beat=
mesh_end_beat() {
    [ -z "$mesh_beat" ] || kill "$mesh_beat" 2>/dev/null || true
    [ -z "$mesh_beat" ] || wait "$mesh_beat" 2>/dev/null || true
    mesh_beat=
}

mesh_find_python() {
    local candidate
    for candidate in ${MESH_LLM_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return 0
        fi
    done
    return 1
}

# What the environment was made from: when this differs from the stamp, it is made again.
mesh_fingerprint() {
    printf '%s ' "$1" "$2"
    cat "$mesh_root/pyproject.toml" "$mesh_root/$3" "$mesh_root/requirements-build.lock" "$mesh_root/scripts/bootstrap.sh" |
        cksum
}

# Writes lines of requirements-build.lock to a file, with their hashes: those of pip, or all others.
mesh_build_lock() {
    local wanted='/^pip==/'
    [ "$1" = pip ] || wanted='!/^pip==/'
    awk "/^[a-z]/ { wanted = $wanted } wanted" "$mesh_root/requirements-build.lock" >"$2"
}

# Debian splits ensurepip off into python3-venv; a machine that has pip, virtualenv or uv can do without it.
mesh_make_venv() {
    local python=$1
    rm -rf "$mesh_venv"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv "$mesh_venv" && return 0
    fi
    rm -rf "$mesh_venv"
    if "$python" -c 'import pip, venv' 2>/dev/null; then
        "$python" -m venv --without-pip "$mesh_venv" &&
            mesh_build_lock pip "$mesh_venv/pip.lock" &&
            "$python" -m pip --python "$mesh_venv/bin/python" install --quiet --require-hashes --no-deps \
                -r "$mesh_venv/pip.lock" && return 0
    fi
    rm -rf "$mesh_venv"
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python "$python" "$mesh_venv" &&
            mesh_build_lock pip "$mesh_venv/pip.lock" &&
            uv pip install --quiet --python "$mesh_venv/bin/python" --require-hashes --no-deps -r "$mesh_venv/pip.lock" &&
            return 0
    fi
    mesh_die "this Python ($python) cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv"
}

mesh_bootstrap() {
    local kind=$1 lock=requirements.lock python want packages quiet=--quiet
    [ "$kind" = dev ] && lock=requirements-dev.lock
    # The common case first, without starting a Python: the stamp names the interpreter it was made with.
    if [ -r "$mesh_venv/.mesh-$kind" ] && [ -x "$mesh_venv/bin/mesh-llm" ]; then
        read -r _ python _ <"$mesh_venv/.mesh-$kind" || python=
        if [ -x "$python" ] && [ "$(mesh_fingerprint "$kind" "$python" "$lock")" = "$(cat "$mesh_venv/.mesh-$kind")" ]; then
            return 0
        fi
    fi
    python=$(mesh_find_python) ||
        mesh_die "needs Python 3.11 or newer. On Debian or Ubuntu: apt install python3 python3-venv; on macOS: brew install python"
    want=$(mesh_fingerprint "$kind" "$python" "$lock")

    # Two first starts at once: the second waits for the first. mkdir is atomic everywhere, flock is not on macOS.
    local lockdir=$mesh_root/.venv.lock owner waits=
    until mkdir "$lockdir" 2>/dev/null; do
        owner=$(cat "$lockdir/pid" 2>/dev/null || true)
        if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
            rm -rf "$lockdir"
            continue
        fi
        [ -n "$waits" ] || mesh_say "Waiting for another start (process ${owner:-unknown}) that sets up the Python environment ..."
        waits=yes
        sleep 0.3
    done
    echo $$ >"$lockdir/pid"
    trap 'rm -rf "$mesh_root/.venv.lock"; mesh_end_beat' EXIT

    if [ "$(cat "$mesh_venv/.mesh-$kind" 2>/dev/null)" != "$want" ]; then
        [ -t 2 ] && quiet=
        if ! "$mesh_venv/bin/python" -c "import os, sys; sys.exit(os.path.realpath(sys.executable) != '$python')" 2>/dev/null ||
            ! "$mesh_venv/bin/python" -m pip --version >/dev/null 2>&1; then
            mesh_say "Setting up the Python environment in $mesh_venv: once, a minute or a few."
            mesh_step "Step 1 of 4: making the virtual environment" mesh_make_venv "$python"
        else
            mesh_say "Updating the Python environment in $mesh_venv."
        fi
        rm -f "$mesh_venv"/.mesh-*
        # Every file is checked against a lock's hashes. pip would fetch build backends without any: they are installed
        # first, and it fetches none.
        mesh_build_lock backends "$mesh_venv/build.lock"
        mesh_step "Step 2 of 4: installing what builds packages" \
            "$mesh_venv/bin/python" -m pip install $quiet --disable-pip-version-check --require-hashes --no-deps \
            -r "$mesh_venv/build.lock" ||
            mesh_die "could not install the pinned build backends of requirements-build.lock; see pip's message above"
        # The engine is built by `mesh-llm engine`, with the accelerators of this machine: the bindings come without one.
        packages=$(grep -c '^[A-Za-z0-9].*==' "$mesh_root/$lock")
        CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
            mesh_step "Step 3 of 4: downloading and installing $packages packages" "$mesh_venv/bin/python" -m pip install $quiet \
            --disable-pip-version-check --no-build-isolation --require-hashes -r "$mesh_root/$lock" ||
            mesh_die "could not install the pinned packages of $lock; see pip's message above, then run this again"
        # compat: one path in a .pth file; the default, an import hook, costs every start 70 ms.
        mesh_step "Step 4 of 4: installing mesh-llm itself" \
            "$mesh_venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --no-index --editable "$mesh_root" --config-settings editable_mode=compat ||
            mesh_die "could not install the checkout itself; see pip's message above"
        # pip does this for what it installs; for the checkout it is done here, or every start would compile (a third of its time) where Python may not write.
        "$mesh_venv/bin/python" -m compileall -q "$mesh_root/meshllm" || true
        printf '%s\n' "$want" >"$mesh_venv/.mesh-$kind"
        mesh_say "The Python environment is ready."
        # What the tests need holds all that the program needs.
        [ "$kind" = dev ] && mesh_fingerprint runtime "$python" requirements.lock >"$mesh_venv/.mesh-runtime"
    fi
    rm -rf "$lockdir"
    trap - EXIT
}
