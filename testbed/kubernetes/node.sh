# Part of `cluster`: a real node, in namespaces of its own on the cluster's bridge.

containerd_socket=/run/containerd/containerd.sock

# ------------------------------------------------------- from the cluster's side

node_boot() {
    local number=$1 name=node$1 pid at
    mkdir -p "$dir/$name"
    certificate "$name" "/O=system:nodes/CN=system:node:$name" \
        extendedKeyUsage=clientAuth,serverAuth "subjectAltName=DNS:$name,IP:$(address_of "$number")"
    kubeconfig "$conf/$name.kubeconfig" "$name"
    pause_image
    ! alive "$name" || return 0
    ip link delete "$name" 2>/dev/null || true
    launch "$name" unshare --mount --net --uts --ipc --pid --fork --kill-child=KILL \
        --propagation private "$self" node-init "$number"
    read -r pid at <"$run/$name.pid"
    until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do
        alive "$name" || die "$name ended (see $log)"
        sleep 0.02
    done
    ip link add "$name" type veth peer name eth0 address "02:00:00:00:00:1$number" netns "$pid"
    ip link set "$name" master nodes up
}

node_ready() {
    wait_for 60 "node$1 is known" kubectl get "node/node$1"
    kubectl wait --for=condition=Ready "node/node$1" --timeout=60s >/dev/null
}

# When the kubelet has last said how its node is.
last_said() {
    kubectl get "node/node$1" --ignore-not-found \
        --output='jsonpath={.status.conditions[?(@.type=="Ready")].lastHeartbeatTime}'
}
said_more() { [ "$(last_said "$1")" != "$2" ]; }

inner_node_start() {
    local before
    before="$(last_said "$1")"
    node_boot "$1"
    wait_for 60 "node$1 says how it is" said_more "$1" "$before"
    node_ready "$1"
}

inner_node_crash() {
    halt "node$1"
    # A machine that boots has none, and a kubelet is slow with those of containers long gone.
    remove_groups "$tag/node$1"
}

inner_node_remove() {
    inner_node_crash "$1"
    kubectl delete node "node$1" --ignore-not-found >/dev/null
    rm -rf "${dir:?}/node$1"
}

# Runs this on the node itself.
inner_node_exec() {
    local outer at inner name=node$1
    shift
    alive "$name" || die "$name does not run"
    read -r outer at <"$run/$name.pid"
    inner="$(first_child "$outer")"
    PATH="$programs:$PATH" nsenter --target "$inner" --mount --net --uts --ipc --pid -- "$@"
}

inner_kubelet_kill() {
    inner_node_exec "$1" sh -c 'kill -KILL "$(cat /run/kubelet.pid)"'
    while inner_node_exec "$1" sh -c '[ -d "/proc/$(cat /run/kubelet.pid)" ]'; do sleep 0.05; done
}
inner_kubelet_start() { inner_node_exec "$1" "$self" inner kubelet-begin "$1"; }

inner_image_import() {
    local file node importing=()
    mkdir -p "$dir/images"
    for file in "$@"; do
        # Also for a node that comes later.
        cp "$file" "$dir/images/$(sha256sum <"$file" | cut -c 1-16).tar"
        for node in "$run"/node*.pid; do
            node="$(basename "$node" .pid)"
            alive "$node" || continue
            inner_node_exec "${node#node}" ctr --address "$containerd_socket" --namespace k8s.io \
                images import --local "$file" >/dev/null &
            importing+=($!)
        done
    done
    for node in "${importing[@]}"; do wait "$node" || die "the import failed"; done
}

# What holds a pod's namespaces needs to do nothing: one layer with a static busybox.
pause_image() {
    local image="$dir/images/pause.tar" work sum
    [ ! -e "$image" ] || return 0
    work="$(mktemp -d "$dir/image.XXXXXX")"
    mkdir -p "$dir/images" "$work/root"
    cp "$(command -v busybox)" "$work/root/busybox"
    tar -C "$work/root" --owner=0 --group=0 -cf "$work/layer.tar" busybox
    sum="$(sha256sum <"$work/layer.tar" | cut -d ' ' -f 1)"
    printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/busybox","sleep","inf"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(architecture)" "$sum" >"$work/config.json"
    printf '[{"Config":"config.json","RepoTags":["test.invalid/pause:1"],"Layers":["layer.tar"]}]' \
        >"$work/manifest.json"
    tar -C "$work" -cf "$image.new" manifest.json config.json layer.tar
    mv "$image.new" "$image"
    rm -rf "$work"
}

architecture() { case "$(uname -m)" in aarch64) echo arm64 ;; *) echo amd64 ;; esac; }

# ---------------------------------------------------------- on the node itself

# The node's first process.
node_init() {
    local number=$1 name=node$1 home="$dir/node$1" image other
    this_network
    export PATH="$programs:$PATH"
    mount --make-rshared /
    mount -t proc proc /proc
    hostname "$name"
    mount -t tmpfs tmpfs /run
    mkdir -p "$home"/var/{lib/kubelet,lib/cni,lib/containerd,log/pods,log/containers,tmp} "$home/cni"
    [ -e "$home/var/run" ] || ln -s /run "$home/var/run"
    mount --bind "$home/var" /var
    # No name resolves: an image that is not there is known to be missing at once.
    echo "nameserver 127.0.0.1" >"$home/resolv.conf"
    mount --bind "$home/resolv.conf" /etc/resolv.conf

    until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
    ip link set lo up
    ip address add "$(address_of "$number")/24" dev eth0
    ip link set eth0 up
    ip route add default via "$net.0.1"
    for other in {1..9}; do
        [ "$other" = "$number" ] || ip route add "$(pods_of "$other")" via "$(address_of "$other")"
    done
    echo 1 >/proc/sys/net/ipv4/ip_forward
    # What pods of one node send each other must meet its rules too.
    echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables || true
    # As in a cloud: whoever nothing holds back reaches it.
    ip address add 169.254.169.254/32 dev lo
    mkdir /run/metadata
    busybox httpd -f -p 169.254.169.254:80 -h /run/metadata >>"$log/$name-metadata.log" 2>&1 &

    node_groups "$name"
    node_configuration "$number"
    containerd --config "$home/containerd.toml" >>"$log/$name-containerd.log" 2>&1 &
    wait_for 30 'containerd answers' ctr --address "$containerd_socket" version
    for image in "$dir"/images/*.tar; do
        ctr --address "$containerd_socket" --namespace k8s.io images import --local "$image" \
            >>"$log/$name-containerd.log" 2>&1
    done
    inner_kubelet_begin "$number"
    kube_proxy "$name"
    "$box" netpol --kubeconfig "$conf/admin.kubeconfig" --node "$name" >>"$log/$name-netpol.log" 2>&1 &
    while :; do
        sleep infinity &
        wait $! || true
    done
}

# A node's own control groups, below which the kubelet makes its own.
node_groups() {
    local group="$tag/$1" at part
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mkdir -p "/sys/fs/cgroup/$group"
        for at in /sys/fs/cgroup "/sys/fs/cgroup/$tag"; do
            for part in cpu cpuset io memory pids; do echo "+$part" >"$at/cgroup.subtree_control"; done
        done
        return
    fi
    for at in cpu cpuacct cpuset memory pids systemd freezer devices blkio; do
        [ ! -d "/sys/fs/cgroup/$at" ] || mkdir -p "/sys/fs/cgroup/$at/$group"
    done
    # New groups of this one are empty, and nothing starts in them.
    for at in "$tag" "$group"; do
        for part in cpus mems; do
            cat "/sys/fs/cgroup/cpuset/cpuset.$part" >"/sys/fs/cgroup/cpuset/$at/cpuset.$part"
        done
    done
}

node_configuration() {
    local number=$1 name=node$1 home="$dir/node$1"
    cat >"$home/cni/10-test.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/var/lib/cni",
            "ranges": [[{"subnet": "$(pods_of "$number")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
JSON
    # A second handler, the same as the first: for runtime classes.
    cat >"$home/containerd.toml" <<TOML
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "$containerd_socket"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "test.invalid/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  # Where scores may only be raised, they are not lowered.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
    conf_dir = "$home/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.second]
      runtime_type = "io.containerd.runc.v2"
TOML
    cat >"$home/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(address_of "$number")
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $pki/$name.crt
tlsPrivateKeyFile: $pki/$name.key
containerRuntimeEndpoint: unix://$containerd_socket
cgroupDriver: cgroupfs
cgroupRoot: /$tag/$name
failCgroupV1: false
failSwapOn: false
clusterDomain: cluster.local
resolvConf: ""
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 2s
nodeStatusReportFrequency: 10s
nodeLeaseDurationSeconds: 10
serializeImagePulls: false
podPidsLimit: 256
healthzBindAddress: 127.0.0.1
$KUBE_KUBELET_CONFIG
YAML
}

# A kubelet tunes its kernel, which here is everybody's: it gets files of its own to write to,
# behind a view of /proc that nothing else sees. Volumes that it mounts are seen by all.
inner_kubelet_begin() {
    local name=node$1 home="$dir/node$1"
    # shellcheck disable=SC2016  # expanded where it runs
    setsid unshare --mount --propagation unchanged bash -euc '
        mkdir -p /run/tuned
        mount --make-private /proc
        for knob in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
            kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
            cat "/proc/sys/$knob" >"/run/tuned/${knob//\//.}"
            mount --bind "/run/tuned/${knob//\//.}" "/proc/sys/$knob"
        done
        exec "$@"' kubelet "$box" kubelet --config="$home/kubelet.yaml" \
        --kubeconfig="$conf/$name.kubeconfig" --hostname-override="$name" \
        --node-ip="$(address_of "$1")" --cert-dir=/var/lib/kubelet/pki \
        >>"$log/$name-kubelet.log" 2>&1 </dev/null &
    echo $! >/run/kubelet.pid
}

kube_proxy() {
    "$box" kube-proxy --kubeconfig="$conf/proxy.kubeconfig" --hostname-override="$1" \
        --proxy-mode=iptables --cluster-cidr="$net.32.0/19" \
        --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
        --conntrack-tcp-timeout-close-wait=0 --healthz-bind-address=127.0.0.1:10256 \
        --metrics-bind-address=127.0.0.1:10249 >>"$log/$1-proxy.log" 2>&1 &
}
