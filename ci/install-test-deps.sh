#!/usr/bin/env bash
# Installs what the tests need and this machine lacks (Debian and its kin). Needs root for that;
# changes nothing, and uses no network, where all is there.
set -euo pipefail

missing=()

# need COMMAND-OR-FILE-PATTERN PACKAGE
need() {
    command -v "$1" >/dev/null 2>&1 || compgen -G "$1" >/dev/null || missing+=("$2")
}

need '/usr/lib/postgresql/*/bin/initdb' postgresql
need setpriv util-linux
need docker-registry docker-registry
need openssl openssl
need dockerd docker.io
need ip iproute2
need iptables iptables
need nsenter util-linux
need mkfs.ext4 e2fsprogs
need curl curl
need python3 python3
need chromium chromium
need chromedriver chromium-driver

# For the real Kubernetes of testbed/kubernetes, where there is Go to build it with.
if command -v go >/dev/null 2>&1; then
    need busybox busybox-static
    need /usr/lib/cni/bridge containernetworking-plugins
    need cc gcc
    need pkg-config pkg-config
    need '/usr/lib/*/libseccomp.a' libseccomp-dev
fi

if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "these packages are missing: ${missing[*]}" >&2
        echo "hint: run this script as root, or install them yourself" >&2
        exit 1
    fi
    # The tests start their servers themselves: none that a package brings may start.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 0755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
