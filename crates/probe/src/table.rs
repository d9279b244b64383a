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

/// A probe and what must become of it.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it tries, in words for a person.
    pub name: &'static str,
    words: &'static [&'static str],
    /// What must become of it.
    pub expected: Verdict,
    /// It fills the disk. A runtime that cannot limit that may end the stack for it instead.
    pub fills_disk: bool,
}

/// What only the one who runs the probes knows.
#[derive(Debug, Clone)]
pub struct Places {
    /// An address of the host that is not loopback, where it has one.
    pub host: String,
    /// A TCP port that a process of the host listens on, on every address.
    pub api: u16,
    /// Where connections come from that are relayed into a stack.
    pub gateway: String,
    /// The node port of another stack.
    pub neighbour: u16,
    /// A directory of the server that runs the stack.
    pub data_dir: String,
}

impl Case {
    /// The arguments to run the probe with.
    pub fn words(&self, places: &Places) -> Vec<String> {
        let (api, neighbour) = (places.api.to_string(), places.neighbour.to_string());
        let known = [
            ("{host}", &places.host),
            ("{api}", &api),
            ("{gateway}", &places.gateway),
            ("{neighbour}", &neighbour),
            ("{data}", &places.data_dir),
        ];
        let fill = |word: &&str| {
            known.iter().fold((*word).to_owned(), |word, (name, value)| word.replace(name, value))
        };
        self.words.iter().map(fill).collect()
    }
}

const fn denied(name: &'static str, words: &'static [&'static str]) -> Case {
    Case { name, words, expected: Verdict::Denied, fills_disk: false }
}

const fn contained(name: &'static str, words: &'static [&'static str]) -> Case {
    Case { name, words, expected: Verdict::Contained, fills_disk: false }
}

const fn filling(name: &'static str, words: &'static [&'static str]) -> Case {
    Case { fills_disk: true, ..contained(name, words) }
}

/// What a stack must not reach, then what it may take only up to a limit of its own. The last one
/// takes memory and is killed for it.
pub const CASES: &[Case] = &[
    denied("the host's loopback", &["connect", "127.0.0.1:{api}"]),
    denied("the host, by the gateway", &["connect", "{gateway}:{api}"]),
    denied("another stack, by the gateway", &["connect", "{gateway}:{neighbour}"]),
    denied("the host, by its address", &["connect", "{host}:{api}"]),
    denied("another stack, by the host", &["connect", "{host}:{neighbour}"]),
    denied("the cloud's metadata", &["connect", "169.254.169.254:80"]),
    denied("the internet, TCP", &["connect", "1.1.1.1:53"]),
    denied("the internet, UDP", &["udp", "1.1.1.1:53"]),
    denied("foreign processes", &["processes"]),
    denied("devices", &["devices"]),
    denied("kernel settings", &["kernel-knobs"]),
    denied("sensitive files of /proc", &["masked"]),
    denied("control groups", &["cgroup"]),
    denied("mounts", &["mount"]),
    denied("new namespaces", &["unshare"]),
    denied("raw sockets", &["raw-socket"]),
    denied("device nodes", &["mknod"]),
    denied("kernel keys", &["keyctl"]),
    denied("dangerous system calls", &["system-calls"]),
    denied("capabilities", &["capabilities"]),
    denied("new privileges", &["set-user-id"]),
    denied("the server's files", &["read", "{data}/stackd.db"]),
    denied("the host's files", &["read", "/proc/1/root/etc/shadow"]),
    denied("the OOM killer", &["write", "/proc/self/oom_score_adj", "-500"]),
    contained("fork bomb", &["fork-bomb"]),
    contained("inotify instances", &["inotify"]),
    contained("pipes", &["pipes"]),
    filling("inodes", &["inode-filler", "/tmp"]),
    filling("disk", &["disk-filler", "/tmp"]),
    Case { name: "memory", words: &["memory-hog"], expected: Verdict::Killed, fills_disk: false },
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
        let places = Places {
            host: "192.0.2.7".to_owned(),
            api: 8080,
            gateway: "10.77.0.1".to_owned(),
            neighbour: 31001,
            data_dir: "/data".to_owned(),
        };
        for case in CASES {
            let words = case.words(&places);
            assert!(words.iter().all(|word| !word.contains('{')), "{words:?}");
        }
        assert_eq!(CASES[4].words(&places), ["connect", "192.0.2.7:31001"]);
    }
}
