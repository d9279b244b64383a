# Part of `cluster`: makes the programs, once, outside of the clone.

kubernetes_version=v1.33.13
containerd_version=2.2.9
runc_version=1.4.3

build() {
    need go
    mkdir -p "$programs"
    exec 8>"$programs/lock"
    flock 8
    build_module kubebox
    build_module runtimes
}

# build_module MODULE: unless what it was made of is the same as the last time.
build_module() {
    local module=$1 stamp began=$SECONDS
    stamp="$(cd "$here" && { go version; cat build.sh "$module"/*; } | sha256sum)"
    [ "$(cat "$programs/$module.stamp" 2>/dev/null)" != "$stamp" ] || return 0
    say "building $module (some minutes the first time)"
    (cd "$here/$module" && "build_$module")
    printf '%s\n' "$stamp" >"$programs/$module.stamp"
    say "built $module in $((SECONDS - began)) s"
}

go_build() {
    # The collector runs seldom: memory is there, time is not.
    GOGC="${GOGC:-400}" GOFLAGS= go build -buildvcs=false -trimpath "$@"
}

build_kubebox() {
    local flags='-s -w' at
    for at in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $at.gitVersion=$kubernetes_version -X $at.gitMajor=1 -X $at.gitMinor=33"
        flags+=" -X $at.gitTreeState=clean"
    done
    CGO_ENABLED=0 go_build -ldflags "$flags" -o "$programs/" .
}

# Newer than what a stable distribution has, for user namespaces.
build_runtimes() {
    local at=github.com/containerd/containerd/v2
    CGO_ENABLED=0 go_build -tags no_btrfs,no_zfs,no_devmapper,no_nri \
        -ldflags "-s -w -X $at/version.Version=$containerd_version" \
        -o "$programs/" "$at"/cmd/{containerd,containerd-shim-runc-v2,ctr}
    CGO_ENABLED=1 go_build -tags seccomp,netgo,osusergo \
        -ldflags "-s -w -linkmode external -extldflags -static -X main.version=$runc_version" \
        -o "$programs/runc" github.com/opencontainers/runc
}
