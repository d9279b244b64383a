//! Every setting there is: its place in the TOML file, its flag, and what it means.
//!
//! The flag gives the environment variable its name: `--default-ttl` is `STACKD_DEFAULT_TTL`. The
//! flags of `stackd serve`, the check for misspelt keys and `docs/configuration.md` are made from
//! this list; a test holds it against the configuration structs, so that none is missing.

/// How the text of a flag or variable becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As it is: a text, a duration, an amount, one of several words.
    Text,
    /// A number.
    Number,
    /// Yes or no; the flag alone means yes.
    Switch,
    /// The same, and yes turns the setting off: `--no-auth` is `auth = false`.
    Off,
    /// Several texts: the flag repeated, or separated by commas.
    List,
    /// The same with whole numbers.
    Numbers,
    /// Several texts by name, as `NAME=TEXT`: the flag repeated, or separated by commas.
    Map,
    /// Amounts by name, as `cpu=2,memory=1Gi`; a table in the file. Given anew, it is replaced as a
    /// whole.
    Table,
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its place in the TOML file, parts separated by dots.
    pub(crate) key: &'static str,
    /// The flag, without `--`.
    pub(crate) flag: &'static str,
    /// What stands for its value in help texts.
    pub(crate) value: &'static str,
    /// How its text is read.
    pub(crate) kind: Kind,
    /// The doc comment, one line of it each.
    doc: &'static [&'static str],
}

impl Setting {
    /// The environment variable.
    pub(crate) fn env(&self) -> String {
        format!("STACKD_{}", self.flag.to_uppercase().replace('-', "_"))
    }

    /// The table of the TOML file that it is in; empty for the top.
    pub(crate) fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// What it means, as one paragraph.
    pub(crate) fn doc(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $kind:ident $key:literal $flag:literal $value:literal;)*) => {
        &[$(Setting {
            key: $key,
            flag: $flag,
            value: $value,
            kind: Kind::$kind,
            doc: &[$($doc),+],
        }),*]
    };
}

/// All settings, in the order of the reference page.
pub(crate) const SETTINGS: &[Setting] = settings! {
    /// The directory that holds the database, images, stacks, the lock and the admin socket. It is
    /// made if it is not there. One server at a time uses it.
    Text "data_dir" "data-dir" "DIR";

    /// An address and port to listen on for the API. May be given several times.
    List "server.listen" "listen" "ADDRESS:PORT";
    /// The TLS certificate chain (PEM). With it, every listener speaks HTTPS.
    Text "server.tls_cert" "tls-cert" "FILE";
    /// The private key (PEM) of the certificate.
    Text "server.tls_key" "tls-key" "FILE";
    /// Serve plain HTTP on addresses other than loopback too: keys and data then travel in clear
    /// text. For use behind a proxy that ends TLS, on a network that is trusted.
    Switch "server.insecure_http" "insecure-http" "BOOL";

    /// Whether callers need an API key. The flag and the variable turn it off, which is refused
    /// unless every listener is on a loopback address.
    Off "api.auth" "no-auth" "BOOL";
    /// The `namespace` that stacks show; on Kubernetes, the one that they are in.
    Text "api.namespace" "namespace" "NAME";
    /// Origins (for example `https://ctf.example.org`) whose pages may call the API from a browser.
    /// None unless named.
    List "api.cors_origins" "cors-origin" "ORIGIN";
    /// The most bytes that a request's body may have.
    Number "api.body_limit_bytes" "body-limit-bytes" "BYTES";
    /// How long a request's body may take to arrive.
    Text "api.body_timeout" "body-timeout" "DURATION";
    /// How long a connection may take for its TLS handshake and for the headers of each request; an
    /// idle connection is closed after it, too.
    Text "api.header_timeout" "header-timeout" "DURATION";
    /// The most connections at once, over all listeners. Further ones wait to be accepted.
    Number "api.max_connections" "max-connections" "COUNT";
    /// How long the server goes on to take connections when it is told to stop; it is not ready any
    /// more from then on. For a load balancer in front, which hears of that a moment later.
    Text "api.shutdown_delay" "shutdown-delay" "DURATION";
    /// How long requests under way may take to end when the server stops.
    Text "api.shutdown_timeout" "shutdown-timeout" "DURATION";

    /// Whose a player's stack is: the `user`'s, or the `team`'s, who then share it.
    Text "api.player.owner" "player-owner" "user|team";
    /// The secret that the platform signs HS256 tokens with. Better in the file or the environment
    /// than on the command line, where every user of the machine can read it.
    Text "api.player.jwt_secret" "player-jwt-secret" "SECRET";
    /// A file with the public key (PEM) that verifies the platform's RS256, ES256 or EdDSA tokens,
    /// by its kind.
    Text "api.player.jwt_public_key" "player-jwt-public-key" "FILE";
    /// Where the platform publishes its public keys (a JWK set). By HTTPS, but on this machine.
    Text "api.player.jwks_url" "player-jwks-url" "URL";
    /// How often published keys are fetched anew; a token with an unknown key fetches them, too.
    Text "api.player.jwks_refresh" "player-jwks-refresh" "DURATION";
    /// How old published keys may be when they cannot be fetched any more. Then no token is good.
    Text "api.player.jwks_max_age" "player-jwks-max-age" "DURATION";
    /// Who may have issued a token (`iss`). Where none is named, whoever can sign.
    List "api.player.issuers" "player-issuer" "NAME";
    /// Whom a token may be for (`aud`). Where none is named, anybody.
    List "api.player.audiences" "player-audience" "NAME";
    /// How far the platform's clock may be from this machine's.
    Text "api.player.leeway" "player-leeway" "DURATION";
    /// The claims that name the user; the first that a token has counts.
    List "api.player.user_claims" "player-user-claim" "NAME";
    /// The claim that names the user's team.
    Text "api.player.team_claim" "player-team-claim" "NAME";
    /// The claims that say what a token is for; each that a token has must say
    /// `api.player.purpose`.
    List "api.player.purpose_claims" "player-purpose-claim" "NAME";
    /// What a token must be for.
    Text "api.player.purpose" "player-purpose" "WORD";
    /// The claim that names the user's role.
    Text "api.player.role_claim" "player-role-claim" "NAME";
    /// The roles that may play. Where none is named, all.
    List "api.player.roles" "player-role" "NAME";
    /// Origins whose pages may show `/play/…` in a frame and hand it a token. None unless named.
    List "api.player.page_origins" "player-page-origin" "ORIGIN";

    /// What runs the stacks: `oci` (containers on this machine), `docker` (containers of a Docker
    /// engine), `kubernetes` (Pods of a cluster) or `simulated` (nothing is started; for people who
    /// write a client, and for load tests).
    Text "runtime.driver" "runtime" "oci|docker|kubernetes|simulated";
    /// The address at which people reach the node ports of this machine: `node_public_ip` of its
    /// stacks. Where it is not set, it is the address that node ports are bound to, unless that is a
    /// wildcard.
    Text "runtime.oci.public_address" "public-address" "ADDRESS";
    /// The address that node ports are bound to.
    Text "runtime.oci.node_port_bind" "node-port-bind" "ADDRESS";
    /// The name of this machine; the host's own where absent.
    Text "runtime.oci.node_name" "node-name" "NAME";
    /// How many empty stacks are kept ready, so that a start has less to do. 0 makes each when it is
    /// needed.
    Number "runtime.oci.ready_stacks" "ready-stacks" "COUNT";
    /// How many starts may be under way at once; twice the number of CPUs where absent.
    Number "runtime.oci.concurrent_starts" "concurrent-starts" "COUNT";
    /// What writable layers are kept on: `loop` (a file system of its own for each stack, in a
    /// sparse file: bytes and inodes are limited) or `memory` (charged to the stack's memory limit).
    Text "runtime.oci.disk" "disk" "loop|memory";
    /// The control group below which all stacks lie. It is relative to the mount point; on version 2
    /// of control groups to the part of the tree that was delegated to this server, unless it begins
    /// with `/`. No two servers may share one, so with a data directory of one's own it is `stackd-`
    /// and eight digits of a hash of that directory, unless it is set.
    Text "runtime.oci.cgroup_parent" "cgroup-parent" "PATH";
    /// The first of the user and group ids that stacks get. Each stack has 65536 of its own, which
    /// are no other's on this machine, also not another server's.
    Number "runtime.oci.first_id" "first-id" "ID";
    /// The most bytes of a log file; two are kept of each container.
    Number "runtime.oci.log_file_bytes" "log-file-bytes" "BYTES";
    /// The most relayed TCP connections of a stack at once.
    Number "runtime.oci.max_connections" "max-stack-connections" "COUNT";
    /// The most relayed UDP flows of a stack at once.
    Number "runtime.oci.max_flows" "max-stack-flows" "COUNT";
    /// How long no datagram may come before a UDP flow is forgotten.
    Text "runtime.oci.flow_idle" "flow-idle" "DURATION";
    /// The address that a stack's services have in its own network.
    Text "runtime.oci.pod_address" "pod-address" "ADDRESS";
    /// The address that relayed connections come from in a stack's own network.
    Text "runtime.oci.gateway_address" "gateway-address" "ADDRESS";

    /// The kubeconfig of the cluster. Without it, it is the service account of the Pod that this runs
    /// in, else `KUBECONFIG` or `~/.kube/config`.
    Text "runtime.kubernetes.kubeconfig" "kubeconfig" "FILE";
    /// The context of the kubeconfig; its current one where absent.
    Text "runtime.kubernetes.context" "kube-context" "NAME";
    /// Tells the stacks of several servers in one namespace apart. What carries this name and has no
    /// row in the database is removed: no two databases may share one.
    Text "runtime.kubernetes.installation" "installation" "NAME";
    /// The RuntimeClass object of each runtime class, as `CLASS=OBJECT`. The class `default` is the
    /// cluster's own unless it is named here. An object that is not there is an error at the start.
    Table "runtime.kubernetes.runtime_classes" "kube-runtime-class" "CLASS=OBJECT";
    /// A label or annotation of nodes that holds their public address, for nodes without an
    /// `ExternalIP`.
    Text "runtime.kubernetes.public_address_key" "public-address-key" "KEY";
    /// Show a node's `InternalIP` as its public address where it has no other.
    Switch "runtime.kubernetes.internal_address_is_public" "internal-address-is-public" "BOOL";
    /// The address of a node that this server dials to learn that a node port takes traffic:
    /// `internal` (its `InternalIP`) or `public` (the one that callers are told).
    Text "runtime.kubernetes.dial" "dial" "internal|public";
    /// Whether stacks get a user namespace of their own: `auto` (where every node says that it can),
    /// `always` or `never`.
    Text "runtime.kubernetes.user_namespaces" "user-namespaces" "auto|always|never";
    /// Refuse images that run as root, so that the `restricted` policy accepts stacks (with the
    /// profile `strict`).
    Switch "runtime.kubernetes.run_as_non_root" "run-as-non-root" "BOOL";
    /// A Secret of the namespace with the credentials of registries. May be given several times.
    List "runtime.kubernetes.image_pull_secrets" "image-pull-secret" "NAME";
    /// An image that has this program as `/stackd`, for `stackd doctor --probe`.
    Text "runtime.kubernetes.probe_image" "probe-image" "IMAGE";
    /// How long a node may be unreachable before its stacks are given up.
    Text "runtime.kubernetes.node_lost_after" "node-lost-after" "DURATION";
    /// How long one call of the API server may take.
    Text "runtime.kubernetes.api_timeout" "kube-api-timeout" "DURATION";
    /// How long one request for a watch lasts. One that says nothing for some seconds longer is given
    /// up: its connection is dead.
    Text "runtime.kubernetes.watch_timeout" "kube-watch-timeout" "DURATION";
    /// How many starts may be on their way to the API server at once.
    Number "runtime.kubernetes.concurrent_starts" "kube-concurrent-starts" "COUNT";

    /// Where the Docker engine is: `unix:///path` or `tcp://host:port`. Without it, `DOCKER_HOST`
    /// says so. On the docker runtime, these settings of `[runtime.oci]` hold too: the addresses,
    /// `node_name`, `concurrent_starts`, `log_file_bytes`, and the bounds of connections and flows.
    Text "runtime.docker.host" "docker-host" "URL";
    /// The authority of the engine's certificate (PEM). This, `tls_cert` and `tls_key` go
    /// together: with them the engine is spoken to by TLS. Without them, where `DOCKER_TLS_VERIFY`
    /// is set, they are `ca.pem`, `cert.pem` and `key.pem` in `DOCKER_CERT_PATH`.
    Text "runtime.docker.tls_ca" "docker-tls-ca" "FILE";
    /// The certificate that the engine is shown (PEM).
    Text "runtime.docker.tls_cert" "docker-tls-cert" "FILE";
    /// The private key of that certificate (PEM).
    Text "runtime.docker.tls_key" "docker-tls-key" "FILE";
    /// Runtime classes beside `default`, and the name of the engine's runtime for each.
    Table "runtime.docker.runtime_classes" "docker-runtime-class" "CLASS=RUNTIME";
    /// The addresses that networks of stacks are cut from, on an engine elsewhere; each takes eight.
    Text "runtime.docker.subnets" "docker-subnets" "ADDRESS/BITS";
    /// How many networks are made ahead of need, on an engine elsewhere.
    Number "runtime.docker.ready_networks" "docker-ready-networks" "COUNT";
    /// The time between two looks at how much disk stacks use, where the engine cannot limit it.
    Text "runtime.docker.disk_look" "docker-disk-look" "DURATION";

    /// How long an image takes to be made ready on the simulated runtime.
    Text "runtime.simulated.prepare_delay" "simulated-prepare-delay" "DURATION";
    /// How long the containers of a stack take to start.
    Text "runtime.simulated.start_delay" "simulated-start-delay" "DURATION";
    /// How long it then takes until they are ready for traffic.
    Text "runtime.simulated.ready_delay" "simulated-ready-delay" "DURATION";
    /// How long a removal takes.
    Text "runtime.simulated.remove_delay" "simulated-remove-delay" "DURATION";
    /// The share of starts whose container ends with code 1 instead of becoming ready: 0 to 1.
    Number "runtime.simulated.failure_rate" "simulated-failure-rate" "SHARE";
    /// The share of start requests that are answered with "try again": 0 to 1.
    Number "runtime.simulated.retry_rate" "simulated-retry-rate" "SHARE";
    /// Decides which starts fail. The same seed and stack ids give the same failures.
    Number "runtime.simulated.seed" "simulated-seed" "NUMBER";
    /// The name of the machine that stacks seem to run on.
    Text "runtime.simulated.node" "simulated-node" "NAME";
    /// The address at which their node ports seem to be. Where it is not set, what the settings of
    /// the oci runtime say.
    Text "runtime.simulated.public_ip" "simulated-public-ip" "ADDRESS";
    /// The runtime classes that are served; the first is the default.
    List "runtime.simulated.runtime_classes" "simulated-runtime-class" "NAME";
    /// How many starts may be under way at once.
    Number "runtime.simulated.concurrent_starts" "simulated-concurrent-starts" "COUNT";
    /// Tell the machine of a stack only once it was started, as in a cluster.
    Switch "runtime.simulated.late_placement" "simulated-late-placement" "BOOL";
    /// What the machine seems to have; without it there is always room.
    Table "runtime.simulated.machine" "simulated-machine" "cpu_milli=N,memory_bytes=N,disk_bytes=N";
    /// Keep stacks in this directory, which several servers on this machine may share. Without it
    /// they are in the server's memory, and end with it.
    Text "runtime.simulated.directory" "simulated-directory" "DIR";

    /// How long a stack lives when its creator did not say.
    Text "engine.default_ttl" "default-ttl" "DURATION";
    /// The shortest life that may be asked for.
    Text "engine.min_ttl" "min-ttl" "DURATION";
    /// The longest life that may be asked for.
    Text "engine.max_ttl" "max-ttl" "DURATION";
    /// How long a stack may take to become ready before it has failed.
    Text "engine.start_timeout" "start-timeout" "DURATION";
    /// How long a create waits for the name of the machine, where the runtime finds one only when a
    /// start is asked for (Kubernetes). What has none for want of room by then is refused.
    Text "engine.schedule_wait" "schedule-wait" "DURATION";
    /// How long a stack may wait for a machine before it has failed.
    Text "engine.schedule_timeout" "schedule-timeout" "DURATION";
    /// How long containers may take to end after a delete, at most.
    Text "engine.delete_grace" "delete-grace" "DURATION";
    /// The node ports to give out. It should lie outside of the machine's range of ephemeral
    /// ports.
    Text "engine.node_ports" "node-port-range" "FIRST-LAST";
    /// How many stacks may wait for a start slot before creates are refused.
    Number "engine.max_waiting_starts" "max-waiting-starts" "COUNT";
    /// The most processes and threads of a stack.
    Number "engine.pids_limit" "pids-limit" "COUNT";
    /// The disk of a container that names no `ephemeral-storage`, in bytes, where
    /// `engine.limit_range.container.default` has none.
    Number "engine.default_disk_bytes" "default-disk-bytes" "BYTES";
    /// What processes in stacks may do: `default` (what images off the shelf need to run as root
    /// inside their own user namespace) or `strict` (nothing but binding low ports).
    Text "engine.profile" "profile" "default|strict";
    /// How many events are kept for readers that resume.
    Number "engine.keep_events" "keep-events" "COUNT";
    /// The least that a container may ask for: any of `cpu`, `memory`, `disk`.
    Table "engine.limit_range.container.min" "container-min" "cpu=N,memory=N,disk=N";
    /// The most that a container may ask for.
    Table "engine.limit_range.container.max" "container-max" "cpu=N,memory=N,disk=N";
    /// What a container gets that does not say. Without it, CPU and memory must be named.
    Table "engine.limit_range.container.default" "container-default" "cpu=N,memory=N,disk=N";
    /// The least that a whole stack may ask for.
    Table "engine.limit_range.stack.min" "stack-min" "cpu=N,memory=N,disk=N";
    /// The most that a whole stack may ask for.
    Table "engine.limit_range.stack.max" "stack-max" "cpu=N,memory=N,disk=N";
    /// What all active stacks together may hold: any of `cpu`, `memory`, `disk`, `stacks`.
    Table "engine.quota" "quota" "cpu=N,memory=N,disk=N,stacks=N";
    /// How often each CPU of the machine may be given away: stacks are idle most of the time.
    Number "engine.room.cpu_overcommit" "cpu-overcommit" "FACTOR";
    /// Memory that stays with the machine.
    Text "engine.room.memory_reserve" "memory-reserve" "AMOUNT";
    /// Disk that stays with the machine.
    Text "engine.room.disk_reserve" "disk-reserve" "AMOUNT";

    /// The CPU cores that a challenge may ask for; any number above 0 where the list is empty.
    Numbers "engine.challenges.cpu_counts" "challenge-cpu-count" "COUNT";
    /// The memory that a challenge may ask for, in MB; any number above 0 where the list is empty.
    Numbers "engine.challenges.memory_mbs" "challenge-memory-mb" "MB";
    /// Pull a challenge's images as soon as it is written, and all challenges' images at the start,
    /// so that the first player does not wait for them.
    Switch "engine.challenges.warm" "warm-challenges" "BOOL";
    /// What the flags of owners are derived from, at least 32 bytes; challenges whose flag is not
    /// one for everybody need it. Another secret means other flags. Better in the file or the
    /// environment than on the command line, where every user of the machine can read it.
    Text "engine.challenges.flag_secret" "flag-secret" "SECRET";
    /// How many stacks a user may make within `engine.players.create_window`. The variable
    /// `STACKS_CREATE_MAX` means the same.
    Number "engine.players.create_max" "player-create-max" "COUNT";
    /// The window in which a user's creates are counted: it begins with the first one. The variable
    /// `STACKS_CREATE_WINDOW` means the same.
    Text "engine.players.create_window" "player-create-window" "DURATION";
    /// How many live stacks a user or, in team mode, a team may have, over all challenges.
    Number "engine.players.max_stacks" "player-max-stacks" "COUNT";
    /// How long after it was made a player's stack can live when it is extended; twice its
    /// challenge's lifetime where absent.
    Text "engine.players.max_lifetime" "player-max-lifetime" "DURATION";

    /// A Docker `config.json` with the credentials of registries (`auths`, `credHelpers`,
    /// `credsStore`). It is read again at every pull. Without it, every pull is anonymous.
    Text "images.docker_config" "docker-config" "FILE";
    /// Registries (`host` or `host:port`) that are asked by plain HTTP. Those on a loopback address
    /// are asked by HTTPS and, where they do not speak it, by plain HTTP.
    List "images.insecure_registries" "insecure-registry" "HOST";
    /// Registries (`host` or `host:port`) that may have an address which is not public: a private or
    /// a link's own one. So may those that another setting here names, or that `docker_config` has
    /// credentials for. No other registry is asked at such an address.
    List "images.internal_registries" "internal-registry" "HOST";
    /// Registries that images may be pulled from; empty means any. Images that were loaded or
    /// imported are not concerned, save on Kubernetes, where it is not known what nodes have.
    List "images.allowed_registries" "allowed-registry" "HOST";
    /// Mirrors of a registry (`host` or `host:port`), asked in this order before the registry
    /// itself.
    Map "images.mirrors" "mirror" "REGISTRY=MIRROR";
    /// Files with further certificate authorities (PEM) to trust, besides the machine's own.
    List "images.extra_ca" "registry-ca" "FILE";
    /// The platform of images, as `os/architecture` or `os/architecture/variant`; this machine's
    /// where absent.
    Text "images.platform" "platform" "OS/ARCH";
    /// How many layers are downloaded at once from one registry, over all pulls.
    Number "images.max_concurrent_downloads" "max-concurrent-downloads" "COUNT";
    /// How often a download that broke is taken up again without having advanced.
    Number "images.download_attempts" "download-attempts" "COUNT";
    /// How long nothing may come before a download has broken.
    Text "images.read_timeout" "registry-read-timeout" "DURATION";
    /// How long connecting to a registry may take.
    Text "images.connect_timeout" "registry-connect-timeout" "DURATION";
    /// Bytes a second, averaged over a minute, below which a download is given up. 0 asks for none.
    Number "images.min_download_rate" "min-download-rate" "BYTES";
    /// How long one pull may take in all. What it has brought is kept for the next one.
    Text "images.pull_timeout" "pull-timeout" "DURATION";
    /// How long a pull goes on when nobody waits for it any more.
    Text "images.abandoned_pull" "abandoned-pull" "DURATION";
    /// Bytes of the disk that images never take, but no more than a tenth of it. Where less is
    /// free, pulled images that no stack uses go, the one that was used longest ago first.
    Number "images.free_bytes" "image-free-bytes" "BYTES";
    /// The most bytes that all pulled images may have together; half of the disk where absent.
    /// Beyond it, those that no stack uses go in the same way. Loaded and imported images do not
    /// count and never go by themselves.
    Number "images.max_pulled_bytes" "max-pulled-bytes" "BYTES";
    /// The most bytes that the compressed layers of one image may have together.
    Number "images.max_download_bytes" "max-download-bytes" "BYTES";
    /// The most bytes that one image may have unpacked.
    Number "images.max_unpacked_bytes" "max-unpacked-bytes" "BYTES";
    /// The most files, directories and links that one layer may have.
    Number "images.max_layer_entries" "max-layer-entries" "COUNT";
    /// The most layers that one image may have. The kernel stacks at most 500.
    Number "images.max_layers" "max-layers" "COUNT";
    /// How many times larger than its archive a layer may be unpacked, once it has passed 64 MiB.
    Number "images.max_expansion" "max-expansion" "FACTOR";

    /// A PostgreSQL database, as `postgres://user:password@host:port/database`. Without it the
    /// database is a SQLite file in the data directory.
    Text "store.database_url" "database-url" "URL";
    /// Bytes kept free beside the SQLite file, and released when the disk is full, so that
    /// deletions still commit. 0 keeps none.
    Number "store.ballast_bytes" "ballast-bytes" "BYTES";

    /// Whether other servers use the same PostgreSQL database: one of them leads, the others follow
    /// and take over. Needs `--database-url` and a runtime that is not of one machine.
    Switch "replicas.enabled" "replicas" "BOOL";
    /// Where the other replicas reach this one, as `http://host:port` or `https://host:port`; the
    /// first address that is listened on where absent. With `--tls-cert`, the certificate itself is
    /// what they check: neither its name nor its authority matters.
    Text "replicas.advertise" "advertise" "URL";
    /// How long a replica leads without hearing from the database. Another takes over when it is
    /// over, so this is how long a failover takes after a crash. A server by itself on PostgreSQL
    /// holds such a lease too: a second one is refused.
    Text "replicas.lease" "replica-lease" "DURATION";
    /// How often the replica that leads renews its lease; at most half of it.
    Text "replicas.renew" "replica-renew" "DURATION";

    /// How log lines are written to standard error: `text` or `json`.
    Text "log.format" "log-format" "text|json";
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or directives such as
    /// `info,stackd_engine=debug`. The variable `STACKD_LOG` means the same. Every request has a line
    /// (`answered`); those that only read and succeed have theirs at `stackd_server=debug`.
    Text "log.level" "log-level" "FILTER";
};

/// The setting of this TOML key.
pub(crate) fn by_key(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_one_style() {
        let mut flags: Vec<_> = SETTINGS.iter().map(|s| s.flag).collect();
        flags.sort_unstable();
        flags.dedup();
        assert_eq!(flags.len(), SETTINGS.len());
        for setting in SETTINGS {
            assert!(setting.doc().ends_with('.'), "{}", setting.key);
            assert!(setting.flag.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
        }
        assert_eq!(SETTINGS[0].env(), "STACKD_DATA_DIR");
    }
}
