# Part of `cluster`: what stays outside of the cluster's namespaces, and clears up after it.
#
# Everything of a cluster runs in a PID and a network namespace of its own, below one process. When
# that ends, in whatever way, the kernel ends the rest and takes interfaces, routes, rules and
# mounts with it; only control groups and files are left to remove.

supervisor_alive() { [ -e "$dir/lock" ] && ! flock --nonblock "$dir/lock" true; }

# The first process of the namespaces, as seen from here.
inner_pid() {
    supervisor_alive && first_child "$(cat "$run/outer.pid")"
}

# hold COMMAND…: has a cluster until the command ends, or a signal comes.
hold() {
    [ "$(id -u)" = 0 ] || die "a cluster needs root"
    [ -x "$box" ] && [ -x "$programs/runc" ] || die "run 'cluster build' first"
    local program
    for program in ip iptables unshare nsenter setpriv openssl busybox; do need "$program"; done
    [ -e "$dir/lock" ] || [ -z "$(ls -A "$dir")" ] || die "$dir holds other things than a cluster"
    exec 9>"$dir/lock"
    flock --nonblock 9 || die "a cluster runs in $dir already"
    clear_up
    mkdir -p "$log" "$run" "$pki" "$conf"
    chmod 700 "$dir" "$pki"
    # What was asked for now holds for all that is started later.
    declare -p "${!KUBE_@}" >"$conf/settings"

    trap take_down EXIT
    trap 'exit 0' TERM INT HUP
    # Without this process there is no cluster.
    setpriv --pdeathsig KILL unshare --net --mount --pid --mount-proc --fork --kill-child=KILL \
        "$self" control-plane >>"$log/cluster.log" 2>&1 </dev/null 9>&- &
    local outer=$!
    echo "$outer" >"$run/outer.pid"
    connect "$outer" || gave_up
    until [ -e "$run/ready" ]; do
        kill -0 "$outer" 2>/dev/null || gave_up
        sleep 0.05
    done
    echo "$dir"
    "$@"
}

until_stdin_ends() { read -r _ || true; }
until_told() {
    sleep infinity 9>&- &
    wait $!
}

gave_up() {
    tail -n 5 "$log/cluster.log" >&2
    die "the cluster did not start"
}

# Makes the one link between the cluster and this machine. Its name is what reserves the network.
connect() {
    local outer=$1 inner='' slot
    until [ -n "$inner" ] && [ "$(readlink "/proc/$inner/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do
        kill -0 "$outer" 2>/dev/null || return 1
        inner="$(first_child "$outer")" || true
        sleep 0.02
    done
    for slot in {0..99}; do
        network "$slot"
        [ -z "$(ip -4 route show to root "$net.0.0/16")" ] || continue
        ip link add "kube$slot" type veth peer name uplink netns "$inner" 2>/dev/null || continue
        ip address add "$net.0.254/24" dev "kube$slot"
        ip link set "kube$slot" up
        for ((node = 1; node <= 9; node++)); do
            ip route add "$(pods_of $node)" via "$(address_of $node)"
        done
        echo "$slot" >"$run/slot.new"
        mv "$run/slot.new" "$run/slot"
        return 0
    done
    die "no network between 10.100.0.0/16 and 10.199.0.0/16 is free"
}

take_down() {
    trap '' TERM INT HUP
    local job
    for job in $(jobs -p); do kill -KILL "$job" 2>/dev/null || true; done
    wait 2>/dev/null || true
    # The kernel would do it too, a little later.
    [ ! -e "$run/slot" ] || ip link delete "kube$(cat "$run/slot")" 2>/dev/null || true
    clear_up
    rm -rf "$dir"
}

# Removes what a cluster leaves that ended by itself.
clear_up() {
    remove_groups "$tag"
    find "$dir" -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf {} +
}

up() {
    ! supervisor_alive || die "a cluster runs in $dir already"
    local said="$dir.log"
    setsid "$self" stay >"$said" 2>&1 </dev/null &
    until grep -qxF "$dir" "$said"; do
        kill -0 $! 2>/dev/null || { cat "$said" >&2; exit 1; }
        sleep 0.1
    done
    rm -f "$said"
    echo "export KUBECONFIG=$dir/kubeconfig"
}

down() {
    supervisor_alive || { say "no cluster runs in $dir"; return 0; }
    exec 7<"$dir/lock"
    kill -TERM "$(awk '/^PPid/ { print $2 }' "/proc/$(cat "$run/outer.pid")/status")"
    flock 7
}
