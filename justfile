# The scripts are the interface; these are short names for them.

default:
    @just --list

# Start a node: just run --model SmolLM2-135M-Instruct
run *arguments:
    scripts/mesh-llm {{arguments}}

# Tests; arguments go to pytest
test *arguments:
    scripts/test {{arguments}}

# Format, lint, types; `just check --fix` mends what it can
check *arguments:
    scripts/check {{arguments}}

# Measure: gateway, engine, mesh, console or start
bench what="gateway" *arguments:
    scripts/bench {{what}} {{arguments}}

# Pin the dependencies anew (needs uv)
lock:
    uv pip compile --universal --generate-hashes --python-version 3.11 --upgrade -o requirements.lock pyproject.toml
    uv pip compile --universal --generate-hashes --python-version 3.11 --upgrade -c requirements.lock --extra dev -o requirements-dev.lock pyproject.toml
    uv pip compile --universal --generate-hashes --python-version 3.11 --upgrade -c requirements.lock -o requirements-build.lock requirements-build.in
