//! What a server must not leave behind.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;
use stackd_store::{Store, StoreConfig};

/// Where to look for what a server has left.
pub(crate) struct Leftovers {
    directory: PathBuf,
    node_ports: (u16, u16),
    cgroup: String,
}

/// Who has a TCP socket at this port: its state as the kernel counts them (10 is listening), and the
/// processes that hold it.
fn sockets_of(port: u16) -> String {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let at = format!(":{port:04X}");
    let mut found = String::new();
    for line in table.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (words.get(1), words.get(3), words.get(9))
        else {
            continue;
        };
        if local.ends_with(&at) {
            let link = format!("socket:[{inode}]");
            let holds = |pid: &PathBuf| {
                let links = entries(pid.join("fd")).into_iter();
                links.filter_map(|fd| fs::read_link(fd).ok()).any(|to| to.as_os_str() == &*link)
            };
            let holders: Vec<_> = entries("/proc").into_iter().filter(holds).collect();
            found.push_str(&format!(", state {state} held by {holders:?}"));
        }
    }
    found
}

impl Leftovers {
    pub(crate) fn of(directory: &Path, node_ports: (u16, u16), cgroup: String) -> Self {
        Self { directory: directory.to_path_buf(), node_ports, cgroup }
    }

    /// Waits until nothing of any stack is left while the server still runs.
    pub(crate) async fn stacks_gone(&self) -> Result<(), String> {
        self.until(|| [self.ports(), self.stack_files()].concat()).await
    }

    /// Waits until no stack has a row any more, where the rows are in a file of the server's.
    pub(crate) async fn rows_gone(&self) -> Result<(), String> {
        let path = self.directory.join("data/stackd.db");
        let mut left = Vec::new();
        for _ in 0..500 {
            if !path.exists() {
                return Ok(());
            }
            let file = StoreConfig::Sqlite { path: path.clone(), ballast_bytes: 0 };
            // The server writes to it meanwhile, so that it may be locked for a moment.
            let loaded = match Store::open(file).await {
                Ok(store) => store.load().await,
                Err(error) => Err(error),
            };
            left = match loaded {
                Ok(found) => found.stacks.iter().map(|stack| stack.id.to_string()).collect(),
                Err(error) => vec![error.to_string()],
            };
            if left.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("rows are left of {}", left.join(", ")))
    }

    /// Waits until nothing of the server is left but its files.
    pub(crate) async fn all_gone(&self) -> Result<(), String> {
        self.until(|| {
            let processes = self.processes();
            let processes = processes.iter().map(|pid| format!("process {}", describe(*pid)));
            let mut left: Vec<_> = processes.collect();
            left.extend(self.mounts());
            left.extend(self.loops());
            left.extend(self.ports());
            left.extend(self.stack_files());
            left
        })
        .await
    }

    async fn until(&self, look: impl Fn() -> Vec<String>) -> Result<(), String> {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        let mut left = Vec::new();
        // What has been confirmed to a caller ends within moments.
        for _ in 0..500 {
            pause.tick().await;
            left = look();
            if left.is_empty() {
                return Ok(());
            }
        }
        Err(format!("left over:\n  {}", left.join("\n  ")))
    }

    /// Processes that hold something of the directory: by an argument, a root, or an open file.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let own = std::process::id();
        entries("/proc")
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok())
            .filter(|pid| u32::try_from(*pid).ok() != Some(own) && self.is_ours(*pid))
            .filter_map(Pid::from_raw)
            .collect()
    }

    fn is_ours(&self, pid: i32) -> bool {
        let base = PathBuf::from(format!("/proc/{pid}"));
        let needle = self.directory.as_os_str().as_encoded_bytes();
        let holds = |data: Vec<u8>| data.windows(needle.len()).any(|part| part == needle);
        let links = entries(base.join("fd")).into_iter().chain([base.join("cwd")]);
        fs::read(base.join("cmdline")).is_ok_and(holds)
            || fs::read(base.join("mountinfo")).is_ok_and(holds)
            || links
                .filter_map(|link| fs::read_link(link).ok())
                .any(|to| to.as_os_str().as_encoded_bytes().starts_with(needle))
    }

    /// Mounts of the directory in our own namespace; those of others are their processes'.
    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let needle = self.directory.display().to_string();
        table.lines().filter(|line| line.contains(&needle)).map(|l| format!("mount {l}")).collect()
    }

    fn loops(&self) -> Vec<String> {
        let needle = self.directory.display().to_string();
        entries("/sys/block")
            .into_iter()
            .filter_map(|block| fs::read_to_string(block.join("loop/backing_file")).ok())
            .filter(|file| file.contains(&needle))
            .map(|file| format!("loop device of {}", file.trim()))
            .collect()
    }

    /// Node ports that somebody still listens on.
    fn ports(&self) -> Vec<String> {
        let mut left = Vec::new();
        for port in self.node_ports.0..=self.node_ports.1 {
            if let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
                left.push(format!("{port}/TCP: {error}{}", sockets_of(port)));
            }
            if let Err(error) = UdpSocket::bind(("127.0.0.1", port)) {
                left.push(format!("{port}/UDP: {error}"));
            }
        }
        left
    }

    /// Files and control groups that carry a stack's name.
    fn stack_files(&self) -> Vec<String> {
        let mut left = Vec::new();
        named_for_stacks(&self.directory.join("data"), 4, &mut left);
        for group in self.groups() {
            named_for_stacks(&group, 1, &mut left);
        }
        left
    }

    /// This server's own control group, in each hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        let bases = entries("/sys/fs/cgroup").into_iter().chain(["/sys/fs/cgroup".into()]);
        bases.map(|base| base.join(&self.cgroup)).filter(|path| path.is_dir()).collect()
    }

    /// Ends what is left, and removes the control groups that the server keeps for its next start.
    pub(crate) fn end(&self) {
        // Killed processes are gone within moments; only then can their groups go.
        for _ in 0..1000 {
            let processes = self.processes();
            for pid in &processes {
                let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
            }
            let groups = self.groups();
            let removed = groups.iter().filter(|group| remove_group(group)).count();
            if processes.is_empty() && removed == groups.len() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The kernel refuses it while a process is inside.
fn remove_group(group: &Path) -> bool {
    for inner in entries(group).iter().filter(|path| path.is_dir()) {
        remove_group(inner);
    }
    fs::remove_dir(group).is_ok()
}

fn describe(pid: Pid) -> String {
    let base = format!("/proc/{}", pid.as_raw_nonzero());
    let command = fs::read(format!("{base}/cmdline")).unwrap_or_default();
    format!("{} {}", pid.as_raw_nonzero(), String::from_utf8_lossy(&command).replace('\0', " "))
}

/// What is in a directory, sorted.
pub(crate) fn entries(path: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn named_for_stacks(directory: &Path, depth: usize, left: &mut Vec<String>) {
    for path in entries(directory) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("stack-") {
            left.push(path.display().to_string());
        } else if depth > 0 && path.is_dir() && name != "images" {
            named_for_stacks(&path, depth - 1, left);
        }
    }
}
