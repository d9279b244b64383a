#!/usr/bin/env bash
# Shows the main job from end to end, on ports and in a directory of its own, and cleans up.
# Needs root, a Rust toolchain with a C compiler to link with, and mkfs.ext4.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "error: stackd starts containers by itself, without a daemon, and needs root for that" >&2
    echo "hint: sudo -E $0" >&2
    exit 1
fi
command -v cargo >/dev/null || {
    echo "error: there is no cargo on the PATH" >&2
    echo "hint: install Rust from https://rustup.rs, or keep your PATH: sudo -E env PATH=\"\$PATH\" $0" >&2
    exit 1
}
command -v mkfs.ext4 >/dev/null || {
    echo "error: there is no mkfs.ext4 on the PATH, which makes the limited disk of each stack" >&2
    echo "hint: it is in e2fsprogs: apt-get install e2fsprogs, dnf install e2fsprogs" >&2
    exit 1
}

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$dim" "$*" "$plain"; }

# A test of this script takes the build that the other tests have, instead of what is shipped.
profile="${STACKD_DEMO_PROFILE:-release}"
step "Building (the first time takes some minutes)"
cargo build --profile "$profile" --locked -p stackd -p stackd-sample
host="$(rustc -vV | sed -n 's/^host: //p')"
built="${CARGO_TARGET_DIR:-target}/$host/${profile/#dev/debug}"
export PATH="$(realpath "$built"):$PATH"

work="$(mktemp -d /tmp/stackd-demo.XXXXXX)"
server='' stack='' group="stackd-demo-$$"
cleanup() {
    status=$?
    if [ -n "$server" ]; then
        [ -z "$stack" ] || stackd stack delete --ignore-not-found "$stack" >/dev/null 2>&1 || true
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    # What the server keeps for its next start: groups without processes, the inner ones first. Those
    # that it had ready leave theirs a moment after it has ended.
    for _ in $(seq 100); do
        find /sys/fs/cgroup/"$group" /sys/fs/cgroup/*/"$group" -depth -type d -exec rmdir {} + \
            2>/dev/null || true
        compgen -G "/sys/fs/cgroup/*/$group" >/dev/null || [ -d "/sys/fs/cgroup/$group" ] || break
        sleep 0.05
    done
    [ "$status" = 0 ] || { echo; echo "the demo failed; the server's log:"; tail -n 30 "$work/log"; }
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}
port="$(free_port)" nodes="$(free_port)"
STACKD_API_KEY="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export STACKD_API_KEY STACKD_SERVER="http://127.0.0.1:$port"

step "1. A server"
show "stackd serve --data-dir $work/data --listen 127.0.0.1:$port"
setsid stackd serve --data-dir "$work/data" --listen "127.0.0.1:$port" \
    --node-port-range "$nodes-$((nodes + 20))" --cgroup-parent "$group" 2>"$work/log" &
server=$!
for _ in $(seq 200); do
    stackd-sample fetch "http://127.0.0.1:$port/readyz" >/dev/null 2>&1 && break
    kill -0 "$server" 2>/dev/null || exit 1
    sleep 0.05
done
stackd-sample fetch "http://127.0.0.1:$port/readyz" >/dev/null

step "2. An image, made of one static program (no registry)"
mkdir -p "$work/root/tmp"
cp "$(command -v stackd-sample)" "$work/root/sample"
show "stackd image import ROOT sample:demo --entrypoint /sample --port 80"
stackd image --data-dir "$work/data" import "$work/root" sample:demo \
    --entrypoint /sample --port 80

step "3. A stack: a container of its own network, users, disk and limits"
show "stackd stack create sample:demo --port 80 --ttl 10m --wait"
stack="$(stackd stack create sample:demo --port 80 --ttl 10m --wait -o name)"
stackd stack get "$stack"

step "4. Its page, through its node port"
node_port="$(stackd stack get "$stack" -o json | sed -n 's/.*"node_port": *\([0-9]*\).*/\1/p' | head -n 1)"
show "curl http://127.0.0.1:$node_port/healthz"
if command -v curl >/dev/null; then
    curl -sS "http://127.0.0.1:$node_port/healthz"
else
    stackd-sample fetch "http://127.0.0.1:$node_port/healthz" | tail -n 2
fi

step "5. What it has written"
show "stackd stack logs $stack"
stackd stack logs "$stack"

step "6. And back to nothing"
show "stackd stack delete $stack"
stackd stack delete "$stack"
stack=''
show "stackd stack list"
stackd stack list

step "Done: everything above is removed again."
cat <<TXT
To go on:
  cd $built
  ./stackd serve                                a server on 127.0.0.1:8080 and :8081
  ./stackd image pull nginx:stable              images from a registry
  ./stackd stack create nginx:stable --port 80 --wait
  http://127.0.0.1:8081/docs                    the API, to read and to try
TXT
