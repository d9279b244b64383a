# Part of `cluster`: what runs once for the whole cluster. All of this happens inside of the
# cluster's own namespaces, where ports and addresses are always the same.

api_port=6443

# ------------------------------------------------------------------- processes

# A process is known by its pid and by when it started: pids come back.
started_at() { awk '{ sub(/^.*\) /, ""); if ($1 != "Z" && $1 != "X") print $20 }' "/proc/$1/stat" 2>/dev/null; }
alive() {
    local pid at
    read -r pid at 2>/dev/null <"$run/$1.pid" || return 1
    [ -n "$at" ] && [ "$(started_at "$pid")" = "$at" ]
}
# launch NAME COMMAND…
launch() {
    local name=$1
    shift
    ! alive "$name" || return 0
    setsid "$@" >>"$log/$name.log" 2>&1 </dev/null &
    echo "$! $(started_at $!)" >"$run/$name.pid"
}
# halt NAME: at once, and waits for its end.
halt() {
    local pid at
    alive "$1" || return 0
    read -r pid at <"$run/$1.pid"
    kill -KILL "$pid" 2>/dev/null || true
    while alive "$1"; do sleep 0.02; done
}

# ---------------------------------------------------------------- certificates

# certificate NAME SUBJECT EXTENSION…
certificate() {
    local name=$1 subject=$2 extension extensions=()
    shift 2
    [ ! -s "$pki/$name.crt" ] || return 0
    for extension in "$@"; do extensions+=(-addext "$extension"); done
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj "$subject" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" \
        -addext basicConstraints=critical,CA:FALSE "${extensions[@]}" \
        -keyout "$pki/$name.key" -out "$pki/$name.crt" 2>/dev/null
}

# kubeconfig FILE CERTIFICATE
kubeconfig() {
    cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: test
  cluster:
    server: https://$net.0.1:$api_port
    certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
- name: $2
  user:
    client-certificate-data: $(base64 -w0 "$pki/$2.crt")
    client-key-data: $(base64 -w0 "$pki/$2.key")
contexts:
- name: test
  context: {cluster: test, user: $2}
current-context: test
YAML
    chmod 600 "$1"
}

certificates() {
    local client=extendedKeyUsage=clientAuth name
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj /CN=stackd-test -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$pki/sa.key" 2>/dev/null
    openssl pkey -in "$pki/sa.key" -pubout -out "$pki/sa.pub"
    certificate apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth \
        "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:$net.0.1,IP:$net.128.1,IP:127.0.0.1" &
    certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client $client &
    certificate admin /O=system:masters/CN=admin $client &
    certificate controllers /CN=system:kube-controller-manager $client &
    certificate scheduler /CN=system:kube-scheduler $client &
    certificate proxy /CN=system:kube-proxy $client &
    wait
    for name in admin controllers scheduler proxy; do kubeconfig "$conf/$name.kubeconfig" "$name"; done
    cp "$conf/admin.kubeconfig" "$dir/kubeconfig"
}

kubectl() { "$box" kubectl --kubeconfig "$dir/kubeconfig" "$@"; }

# ------------------------------------------------------------------ the programs

start_etcd() {
    local at=http://127.0.0.1
    launch etcd "$box" etcd --name test --data-dir "$dir/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls $at:2379 --advertise-client-urls $at:2379 \
        --listen-peer-urls $at:2380 --initial-advertise-peer-urls $at:2380 \
        --initial-cluster test=$at:2380
}

start_kube_apiserver() {
    # Who asked for what, but for the cluster's own parts: tests count it.
    cat >"$conf/audit.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  userGroups: ["system:nodes", "system:serviceaccounts:kube-system"]
- level: None
  users: ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"]
- level: Metadata
YAML
    # shellcheck disable=SC2086  # several words
    launch kube-apiserver "$box" kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
        --bind-address=0.0.0.0 --secure-port=$api_port --advertise-address="$net.0.1" \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --client-ca-file="$pki/ca.crt" --service-cluster-ip-range="$net.128.0/17" \
        --service-account-issuer=https://kubernetes.default.svc \
        --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --allow-privileged=true \
        --kubelet-certificate-authority="$pki/ca.crt" \
        --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
        --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
        --kubelet-preferred-address-types=InternalIP \
        --audit-policy-file="$conf/audit.yaml" --audit-log-path="$dir/audit.log" \
        --audit-log-maxsize=1000 $KUBE_APISERVER_ARGS
}

start_kube_controller_manager() {
    launch kube-controller-manager "$box" kube-controller-manager \
        --kubeconfig="$conf/controllers.kubeconfig" --bind-address=127.0.0.1 \
        --cert-dir="$dir/etcd" --leader-elect=false --use-service-account-credentials \
        --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
        --allocate-node-cidrs=false \
        --node-monitor-grace-period="$KUBE_NODE_GRACE" --node-monitor-period=1s \
        --kube-api-qps=500 --kube-api-burst=1000 \
        --kube-api-content-type=application/vnd.kubernetes.protobuf
}

start_kube_scheduler() {
    cat >"$conf/scheduler.yaml" <<YAML
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {leaderElect: false}
clientConnection:
  kubeconfig: $conf/scheduler.kubeconfig
  qps: 1000
  burst: 2000
  contentType: application/vnd.kubernetes.protobuf
YAML
    launch kube-scheduler "$box" kube-scheduler --config="$conf/scheduler.yaml" \
        --bind-address=127.0.0.1 --cert-dir="$dir/etcd"
}

# Nodes and pods without anything behind them.
start_kwok() {
    launch kwok "$box" kwok --kubeconfig="$dir/kubeconfig" --manage-all-nodes=false \
        --manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake \
        --cidr="$net.64.0/18" --node-ip="$net.0.1" --server-address=127.0.0.1:10247 \
        --node-lease-duration-seconds=40
}

healthy() {
    case "$1" in
        etcd) alive etcd ;;
        kube-apiserver) kubectl get --raw /readyz ;;
        *) alive "$1" ;;
    esac
}

fake_nodes() {
    local taints='' number
    start_kwok
    # Where there are real nodes too, only who asks for it gets on one that starts nothing.
    [ "$KUBE_NODES" = 0 ] || taints='{key: kwok.x-k8s.io/node, value: fake, effect: NoSchedule}'
    for ((number = 1; number <= $1; number++)); do
        cat <<YAML
---
apiVersion: v1
kind: Node
metadata:
  name: fake-$number
  annotations: {kwok.x-k8s.io/node: fake}
  labels: {type: kwok, kubernetes.io/hostname: fake-$number, kubernetes.io/os: linux}
spec: {taints: [$taints]}
status:
  allocatable: {cpu: "32", memory: 256Gi, pods: "1000", ephemeral-storage: 1Ti}
  capacity: {cpu: "32", memory: 256Gi, pods: "1000", ephemeral-storage: 1Ti}
YAML
    done | kubectl apply --server-side -f - >/dev/null
    kubectl wait --for=condition=Ready node --selector type=kwok --timeout=60s >/dev/null
}

# ------------------------------------------------------------------------ all of it

# The first process of the namespaces.
control_plane() {
    until [ -e "$run/slot" ]; do sleep 0.02; done
    this_network
    ip link set lo up
    # Neighbours remember addresses of links, which therefore stay what they are.
    ip link add nodes address 02:00:00:00:00:01 type bridge
    ip address add "$net.0.1/24" dev nodes
    ip link set nodes up
    ip link set uplink master nodes
    ip link set uplink up
    local began=$SECONDS number
    for number in {1..9}; do ip route add "$(pods_of "$number")" via "$(address_of "$number")"; done
    certificates
    start_etcd
    start_kube_apiserver
    for ((number = 1; number <= KUBE_NODES; number++)); do node_boot "$number"; done
    wait_for 60 'the API server is alive' kubectl get --raw /livez
    start_kube_controller_manager
    start_kube_scheduler
    wait_for 60 'the API server is ready' healthy kube-apiserver
    wait_for 60 'the default service account' kubectl get serviceaccount default
    [ "$KUBE_FAKE_NODES" = 0 ] || fake_nodes "$KUBE_FAKE_NODES"
    for ((number = 1; number <= KUBE_NODES; number++)); do node_ready "$number"; done
    say "up in $((SECONDS - began)) s"
    touch "$run/ready"
    # It also inherits, and buries, whatever loses its parent.
    while :; do
        sleep infinity &
        wait $! || true
    done
}

inner_signal() {
    local pid at
    alive "$1" || die "$1 does not run"
    read -r pid at <"$run/$1.pid"
    kill -"$2" "$pid"
    [ "$2" != KILL ] || while alive "$1"; do sleep 0.02; done
}

inner_start() {
    declare -F "start_${1//-/_}" >/dev/null || die "there is no program $1"
    "start_${1//-/_}"
    wait_for 60 "$1 answers" healthy "$1"
}

inner_status() {
    local file name pid at
    for file in "$run"/*.pid; do
        name="$(basename "$file" .pid)"
        [ "$name" != outer ] || continue
        if alive "$name"; then
            read -r pid at <"$file"
            printf '%-26s %5d MiB\n' "$name" $(($(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status") / 1024))
        else
            printf '%-26s gone\n' "$name"
        fi
    done
}
