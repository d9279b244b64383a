#!/usr/bin/env bash
# Runs every check of the repository, and installs what they need. Usage: ci/test.sh [STEP…]
# Steps: fmt clippy deny docs helm test openapi demo, all of them unless named.
set -euo pipefail
cd "$(dirname "$0")/.."

# One build directory outside of the clone, so that the next run begins warm.
export CARGO_TARGET_DIR="${STACKD_TARGET_DIR:-${CARGO_TARGET_DIR:-$HOME/.cache/stackd/target}}"
tools="${STACKD_TOOLS_DIR:-$HOME/.cache/stackd/tools}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

if [ "$(id -u)" != 0 ]; then
    echo "the tests start real containers, which needs root" >&2
    echo "hint: sudo -E $0 $*" >&2
    exit 1
fi

if [ -n "${STACKD_TEST_ALL:-}" ] && [ -n "${STACKD_TEST_SKIP:-}" ]; then
    echo "error: STACKD_TEST_SKIP=$STACKD_TEST_SKIP leaves out what STACKD_TEST_ALL wants" >&2
    exit 1
fi

say() { printf '\n== %s\n' "$*"; }

# What this machine cannot do is left out, and said again at the end. With STACKD_TEST_ALL set, as in
# the continuous integration, it is an error.
skipped=()
skip() { # WORD WHAT-AND-WHY
    if [ -n "${STACKD_TEST_ALL:-}" ]; then
        echo "error: $2, and STACKD_TEST_ALL wants every test" >&2
        exit 1
    fi
    skipped+=("$2")
    export STACKD_TEST_SKIP="${STACKD_TEST_SKIP:+$STACKD_TEST_SKIP,}$1"
}

step_fmt() { cargo fmt --all --check; }

step_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

step_deny() {
    local version=0.20.2
    if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qF "$version"; then
        # Built apart from our own flags, once.
        (cd / && cargo install --locked --quiet --root "$tools" --target-dir "$tools/target" \
            "cargo-deny@$version")
        rm -rf "$tools/target"
    fi
    export PATH="$tools/bin:$PATH"
    cargo deny --locked check licenses bans sources
    if timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
        cargo deny --locked check --disable-fetch advisories
    else
        # Of the world, not of this machine: it fails no run, and is said again at its end.
        skipped+=('advisories about dependencies: their database cannot be fetched from here')
    fi
}

step_docs() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
}

# Installs what the chart needs: Helm, once, into the tools directory. Tests find it on the path.
have_helm() {
    local version=v3.22.0
    export PATH="$tools/bin:$PATH"
    [ "$(cat "$tools/helm.version" 2>/dev/null)" != "$version" ] || return 0
    (cd / && GOFLAGS= GOBIN="$tools/bin" go install "helm.sh/helm/v3/cmd/helm@$version")
    echo "$version" >"$tools/helm.version"
}

step_helm() {
    local chart=deploy/helm/stackd values
    if ! command -v go >/dev/null; then
        skip helm 'checks of the Helm chart: there is no Go to build Helm with'
        return
    fi
    have_helm
    for values in "$chart"/values.yaml "$chart"/ci/*.yaml; do
        helm lint --quiet --strict "$chart" --values "$values"
        helm template stackd "$chart" --kube-version 1.33.0 --values "$values" >/dev/null
    done
}

step_test() {
    ci/install-test-deps.sh
    if command -v go >/dev/null; then
        testbed/kubernetes/cluster build
        have_helm
    else
        skip kubernetes 'tests on a real Kubernetes: there is no Go to build it with'
    fi
    # What is tested end to end mostly waits: for a container, a lease, a deadline.
    [ "$(nproc)" -ge 4 ] || export RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}"
    cargo test --workspace --locked
}

# The document by which others make clients must be valid to somebody else's eyes. That it is the
# document of this code is a test of the server's.
step_openapi() {
    local version=0.9.0 venv="$tools/openapi"
    if ! "$venv/bin/pip" show openapi-spec-validator 2>/dev/null | grep -qx "Version: $version"; then
        rm -rf "$venv"
        python3 -m venv "$venv" 2>/dev/null || {
            apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv
            python3 -m venv "$venv"
        }
        "$venv/bin/pip" install --quiet "openapi-spec-validator==$version"
    fi
    "$venv/bin/openapi-spec-validator" --schema 3.1 docs/openapi.json
}

# The first command of the README, with what it must leave: nothing; and the program must run on a
# machine without the libraries of this one. It takes the tests' build unless STACKD_DEMO_PROFILE says
# release, which takes minutes more.
step_demo() {
    export STACKD_DEMO_PROFILE="${STACKD_DEMO_PROFILE:-dev}"
    local scratch="$tools/demo" pid work left program headers
    mkdir -p "$scratch"
    # shellcheck disable=SC2016  # expanded where it runs
    bash -c 'echo "$$" >"$1/pid"; exec ci/demo.sh' demo "$scratch" | tee "$scratch/said"
    pid="$(cat "$scratch/pid")"
    work="$(sed -n 's|.*--data-dir \(/tmp/stackd-demo\.[^/]*\)/.*|\1|p' "$scratch/said" | head -n 1)"
    [ -n "$work" ] || { echo "error: the demo does not name its directory" >&2; return 1; }
    left="$(ls -d "$work" "/sys/fs/cgroup/stackd-demo-$pid" /sys/fs/cgroup/*/"stackd-demo-$pid" \
        2>/dev/null || true)"
    [ -z "$left" ] || { echo "error: the demo leaves $left" >&2; return 1; }

    program="$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/${STACKD_DEMO_PROFILE/#dev/debug}/stackd"
    headers="$(readelf --program-headers --wide "$program")"
    if grep -w INTERP <<<"$headers"; then
        echo "error: $program is not static" >&2
        return 1
    fi
}

steps=("$@")
[ "${#steps[@]}" -gt 0 ] || steps=(fmt clippy deny docs helm test openapi demo)
for step in "${steps[@]}"; do
    declare -F "step_$step" >/dev/null || { echo "there is no step $step" >&2; exit 2; }
    say "$step"
    began=$SECONDS
    "step_$step"
    echo "$step: passed in $((SECONDS - began)) s"
done
for what in "${skipped[@]}"; do printf '\nNOT RUN: %s\n' "$what" >&2; done
say "all passed"
