//! What is tried, and what must become of it: one table for every runtime.

/// What became of an attempt, or must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Refused.
    Denied,
    /// It went as far as a limit of the stack's own.
    Contained,
    /// It worked: isolation has a hole.
    Allowed,
    /// The attempt was ended before it could tell.
    Killed,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Denied, Self::Contained, Self::Allowed, Self::Killed];

    /// As it is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Contained => "contained",
            Self::Allowed => "allowed",
            Self::Killed => "killed",
        }
    }
}

/// What a probe has printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// What became of it.
    pub verdict: Verdict,
    /// What was tried, and what the kernel said.
    pub detail: String,
}

impl Said {
    /// From a probe's output and exit code; none where it is not a probe's.
    pub fn read(output: &str, code: i32) -> Option<Self> {
        let line = output.trim_end().lines().last().unwrap_or_default();
        if line.is_empty() && code == 128 + libc::SIGKILL {
            let detail = "ended by the kernel".to_owned();
            return Some(Self { verdict: Verdict::Killed, detail });
        }
        let (word, detail) = line.split_once(' ').unwrap_or((line, ""));
        let verdict = Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == word)?;
        Some(Self { verdict, detail: detail.to_owned() })
    }
}

/// What runs the stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// One machine, by itself or with a Docker engine.
    Machine,
    /// The nodes of a Kubernetes cluster.
    Cluster,
}

/// What a disk has only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fills {
    /// Bytes.
    Room,
    /// Files.
    Inodes,
}

/// A probe and what must become of it.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it tries, in words for a person.
    pub name: &'static str,
    words: &'static [&'static str],
    /// What must become of it.
    pub expected: Verdict,
    /// What of the disk it fills. A runtime that cannot limit that may end the stack for it instead.
    pub fills: Option<Fills>,
    /// The only platform on which it can be tried, if there is one.
    only_on: Option<Platform>,
}

/// What only the one who runs the probes knows.
#[derive(Debug, Clone)]
pub enum Places {
    /// Where stacks run on one machine.
    Machine {
        /// An address of the host that is not loopback, where it has one.
        host: String,
        /// A TCP port that a process of the host listens on, on every address.
        api: u16,
        /// Where connections come from that are relayed into a stack.
        gateway: String,
        /// The node port of another stack.
        neighbour: u16,
        /// A directory of the server that runs the stack.
        data_dir: String,
    },
    /// Where they run on a cluster.
    Cluster {
        /// The address of a node.
        node: String,
        /// The address and port at which Pods find the API server.
        api_server: String,
        /// The node port of another stack.
        neighbour: u16,
        /// The address and port of its Pod.
        pod: String,
    },
}

impl Places {
    const fn platform(&self) -> Platform {
        match self {
            Self::Machine { .. } => Platform::Machine,
            Self::Cluster { .. } => Platform::Cluster,
        }
    }

    /// What is to be tried there.
    pub fn cases(&self) -> impl Iterator<Item = &'static Case> + use<> {
        cases(self.platform())
    }
}

/// What is to be tried on a platform: what a stack must not reach, then what it may take only up to
/// a limit of its own. The last one takes memory and is killed for it.
pub fn cases(on: Platform) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| case.only_on.is_none_or(|only| only == on))
}

impl Case {
    /// The arguments to run the probe with.
    pub fn words(&self, places: &Places) -> Vec<String> {
        let known = match places {
            Places::Machine { host, api, gateway, neighbour, data_dir } => vec![
                ("{host}", host.clone()),
                ("{api}", api.to_string()),
                ("{gateway}", gateway.clone()),
                ("{neighbour}", neighbour.to_string()),
                ("{data}", data_dir.clone()),
            ],
            Places::Cluster { node, api_server, neighbour, pod } => vec![
                ("{node}", node.clone()),
                ("{api-server}", api_server.clone()),
                ("{neighbour}", neighbour.to_string()),
                ("{pod}", pod.clone()),
            ],
        };
        let fill = |word: &&str| {
            known.iter().fold((*word).to_owned(), |word, (name, value)| word.replace(name, value))
        };
        self.words.iter().map(fill).collect()
    }

    const fn only_on(self, platform: Platform) -> Self {
        Self { only_on: Some(platform), ..self }
    }
}

const fn denied(name: &'static str, words: &'static [&'static str]) -> Case {
    Case { name, words, expected: Verdict::Denied, fills: None, only_on: None }
}

const fn contained(name: &'static str, words: &'static [&'static str]) -> Case {
    Case { expected: Verdict::Contained, ..denied(name, words) }
}

const fn filling(fills: Fills, words: &'static [&'static str], on: Platform) -> Case {
    let name = match fills {
        Fills::Room => "disk",
        Fills::Inodes => "inodes",
    };
    Case { fills: Some(fills), ..contained(name, words) }.only_on(on)
}

const fn on_machine(name: &'static str, words: &'static [&'static str]) -> Case {
    denied(name, words).only_on(Platform::Machine)
}

const fn on_cluster(name: &'static str, words: &'static [&'static str]) -> Case {
    denied(name, words).only_on(Platform::Cluster)
}

const CASES: &[Case] = &[
    on_machine("the host's loopback", &["connect", "127.0.0.1:{api}"]),
    on_machine("the host, by the gateway", &["connect", "{gateway}:{api}"]),
    on_machine("another stack, by the gateway", &["connect", "{gateway}:{neighbour}"]),
    on_machine("the host, by its address", &["connect", "{host}:{api}"]),
    on_machine("another stack, by the host", &["connect", "{host}:{neighbour}"]),
    // Where a kubelet and a kube-proxy tell how they are: only who shares the node's network sees it.
    on_cluster("the node's loopback", &["connect", "127.0.0.1:10248", "127.0.0.1:10249"]),
    on_cluster("the kubelet", &["connect", "{node}:10250"]),
    on_cluster("another stack, by the node", &["connect", "{node}:{neighbour}"]),
    on_cluster("another stack, by its Pod", &["connect", "{pod}"]),
    on_cluster("the API server", &["connect", "{api-server}"]),
    denied("the cloud's metadata", &["connect", "169.254.169.254:80"]),
    denied("the internet, TCP", &["connect", "1.1.1.1:53"]),
    denied("the internet, UDP", &["udp", "1.1.1.1:53"]),
    denied("foreign processes", &["processes"]),
    denied("devices", &["devices"]),
    denied("kernel settings", &["kernel-knobs"]),
    on_machine("sensitive files of /proc", &["masked"]),
    // What a cluster's container runtime leaves of /proc cannot be asked for.
    on_cluster("sensitive files of /proc", &["masked", "names"]),
    denied("control groups", &["cgroup"]),
    denied("mounts", &["mount"]),
    denied("new namespaces", &["unshare"]),
    denied("raw sockets", &["raw-socket"]),
    denied("device nodes", &["mknod"]),
    denied("kernel keys", &["keyctl"]),
    denied("dangerous system calls", &["system-calls"]),
    denied("capabilities", &["capabilities"]),
    denied("new privileges", &["set-user-id"]),
    on_machine("the server's files", &["read", "{data}/stackd.db"]),
    on_cluster(
        "a service account's token",
        &["read", "/var/run/secrets/kubernetes.io/serviceaccount/token"],
    ),
    denied("the host's files", &["read", "/proc/1/root/etc/shadow"]),
    denied("the OOM killer", &["write", "/proc/self/oom_score_adj", "-500"]),
    contained("fork bomb", &["fork-bomb"]),
    contained("inotify instances", &["inotify"]),
    contained("pipes", &["pipes"]),
    // A cluster counts no files: a node's whole disk would run out of inodes first.
    filling(Fills::Inodes, &["inode-filler", "/tmp"], Platform::Machine),
    filling(Fills::Room, &["disk-filler", "/tmp"], Platform::Machine),
    // A kubelet looks only now and then, and must find it: not much more than is allowed, and kept.
    filling(Fills::Room, &["disk-filler", "/tmp", "48", "hold"], Platform::Cluster),
    Case { expected: Verdict::Killed, ..denied("memory", &["memory-hog"]) },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_probe_prints_is_read_back() {
        let said = Said::read("noise\ndenied mount: EPERM\n", 0).unwrap();
        assert_eq!((said.verdict, said.detail.as_str()), (Verdict::Denied, "mount: EPERM"));
        assert_eq!(Said::read("", 137).unwrap().verdict, Verdict::Killed);
        assert_eq!(Said::read("", 0), None);
        assert_eq!(Said::read("exec: no such file", 126), None);
    }

    #[test]
    fn every_place_is_filled_in() {
        let machine = Places::Machine {
            host: "192.0.2.7".to_owned(),
            api: 8080,
            gateway: "10.77.0.1".to_owned(),
            neighbour: 31001,
            data_dir: "/data".to_owned(),
        };
        let cluster = Places::Cluster {
            node: "192.0.2.8".to_owned(),
            api_server: "10.96.0.1:443".to_owned(),
            neighbour: 31002,
            pod: "10.244.1.2:80".to_owned(),
        };
        for (places, neighbour) in [(machine, "192.0.2.7:31001"), (cluster, "192.0.2.8:31002")] {
            let words: Vec<_> = places.cases().map(|case| case.words(&places)).collect();
            assert!(words.iter().flatten().all(|word| !word.contains('{')), "{words:?}");
            assert!(words.contains(&vec!["connect".to_owned(), neighbour.to_owned()]), "{words:?}");
        }
    }

    #[test]
    fn each_platform_has_a_case_for_every_kind_of_wall() {
        for on in [Platform::Machine, Platform::Cluster] {
            let of = |verdict| cases(on).filter(|case| case.expected == verdict).count();
            assert!(of(Verdict::Denied) > 20 && of(Verdict::Contained) > 3, "{on:?}");
            assert_eq!(cases(on).last().map(|case| case.expected), Some(Verdict::Killed));
            assert!(cases(on).any(|case| case.fills.is_some()), "{on:?}");
        }
    }
}
