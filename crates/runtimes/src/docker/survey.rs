//! What an engine is like: whether it can be used at all, and what of the isolation it has words
//! for. `stackd doctor` shows it.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::SystemInfoCgroupVersionEnum as CgroupVersion;
use bollard::models::{ContainerCreateBody, HostConfig, SystemInfo};
use bollard::query_parameters::RemoveContainerOptionsBuilder;
use stackd_core::admission::RoomPolicy;
use stackd_core::spec::Requested;

use super::config::DockerConfig;
use super::engine::{self, EngineError, chain};
use super::plan::Abilities;
use super::{capacity, objects, pause};

/// The oldest version of the API that has all that is asked for.
const OLDEST_API: (usize, usize) = (1, 41);

/// Something that was found out about an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// Whether a server works with it: `Some(false)` where it does so with less.
    pub fit: Fit,
    /// What was found.
    pub found: String,
    /// What to do about it, where there is something.
    pub fix: &'static str,
}

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// As it should be.
    Good,
    /// It works with less than there could be.
    Less,
    /// It does not work.
    Not,
}

/// Looks at an engine, without making anything in it; also at how many more stacks of a size have
/// room there.
pub async fn survey(config: &DockerConfig, room: &RoomPolicy, size: &Requested) -> Vec<Finding> {
    let finding = |name, fit, found: String, fix| Finding { name, fit, found, fix };
    let docker = match engine::connect(config).await {
        Ok(docker) => docker,
        Err(error @ EngineError::Settings(_)) => {
            let fix = "correct the settings in [runtime.docker], or the options of their names";
            return vec![finding("settings", Fit::Not, error.to_string(), fix)];
        }
        Err(error) => return vec![unreachable(error.to_string())],
    };
    let (version, info) = match tokio::join!(docker.version(), docker.info()) {
        (Ok(version), Ok(info)) => (version, info),
        (Err(e), _) | (_, Err(e)) => return vec![unreachable(chain(&e))],
    };
    let text = format!(
        "{} {}, API {} at {}",
        info.operating_system.as_deref().unwrap_or("unknown system"),
        version.version.as_deref().unwrap_or("of unknown version"),
        docker.client_version(),
        config.host,
    );
    let mut findings = vec![finding("engine", Fit::Good, text, "")];
    findings.push(api(&docker));
    findings.push(permissions(&info));
    findings.extend(judged(config, &info));
    findings.push(capacity::find(&docker, config, &info, room, size).await);
    findings
}

/// The version of the API that was agreed on.
fn api(docker: &Docker) -> Finding {
    let spoken = docker.client_version();
    let is_known = (spoken.major_version, spoken.minor_version) >= OLDEST_API;
    Finding {
        name: "engine API",
        fit: if is_known { Fit::Good } else { Fit::Not },
        found: format!("{spoken}; {}.{} or newer is needed", OLDEST_API.0, OLDEST_API.1),
        fix: "take Docker 20.10 or newer",
    }
}

/// The engine did not answer; or it did, and not to us.
fn unreachable(found: String) -> Finding {
    let words = found.to_ascii_lowercase();
    if words.contains("permission denied") || words.contains("os error 13") {
        let fix = "run as root, or as a member of the group of the engine's socket";
        return Finding { name: "permissions", fit: Fit::Not, found, fix };
    }
    let fix = "start the engine, name it with --docker-host, and run as root or a member of the \
               group that may use its socket";
    Finding { name: "engine", fit: Fit::Not, found, fix }
}

/// Who reaches an engine may do everything there, unless a plugin of it says otherwise.
fn permissions(info: &SystemInfo) -> Finding {
    let name = "permissions";
    let plugins = info.plugins.as_ref().and_then(|plugins| plugins.authorization.as_ref());
    match plugins.filter(|plugins| !plugins.is_empty()) {
        None => Finding {
            name,
            fit: Fit::Good,
            found: "everything may be asked of the engine".to_owned(),
            fix: "",
        },
        Some(plugins) => Finding {
            name,
            fit: Fit::Less,
            found: format!("the engine asks {} about each call", plugins.join(", ")),
            fix: "let them allow containers, images, volumes, networks, exec, logs and events",
        },
    }
}

/// Whether root in a container is nobody outside.
pub(super) fn is_remapped(info: &SystemInfo) -> bool {
    let mut options = info.security_options.iter().flatten().flat_map(|o| o.split(','));
    options.any(|option| matches!(option, "name=userns" | "name=rootless"))
}

/// What the engine says of itself.
fn judged(config: &DockerConfig, info: &SystemInfo) -> Vec<Finding> {
    let finding = |name, fit, found: &str, fix| Finding { name, fit, found: found.to_owned(), fix };
    let good_or = |good: bool, other: Fit| if good { Fit::Good } else { other };
    let options = info.security_options.as_deref().unwrap_or_default();
    let has =
        |name: &str| options.iter().any(|o| o.split(',').any(|o| o == format!("name={name}")));
    let mut findings = Vec::new();
    let linux = info.os_type.as_deref().is_none_or(|os| os == "linux");
    findings.push(finding(
        "engine system",
        good_or(linux, Fit::Not),
        info.os_type.as_deref().unwrap_or("linux"),
        "stacks are Linux containers: name an engine that runs those",
    ));
    let seccomp = has("seccomp");
    findings.push(finding(
        "seccomp",
        good_or(seccomp, Fit::Not),
        if seccomp { "there" } else { "missing" },
        "take a kernel with CONFIG_SECCOMP_FILTER and an engine that is built with it",
    ));
    let limits = [
        ("memory", info.memory_limit),
        ("swap", info.swap_limit),
        ("cpu", info.cpu_cfs_quota),
        ("pids", info.pids_limit),
    ];
    let missing: Vec<_> =
        limits.iter().filter(|(_, there)| *there != Some(true)).map(|(name, _)| *name).collect();
    let vital = missing.iter().any(|name| *name != "swap");
    findings.push(finding(
        "limits",
        match (missing.is_empty(), vital) {
            (true, _) => Fit::Good,
            (false, false) => Fit::Less,
            (false, true) => Fit::Not,
        },
        &match missing.is_empty() {
            true => "memory without swap, CPU, and processes of each container only".to_owned(),
            false => format!("the engine cannot limit {}", missing.join(", ")),
        },
        "turn the cgroup controllers on (for swap on cgroup v1: swapaccount=1 on the kernel's \
         command line)",
    ));
    let remapped = is_remapped(info);
    findings.push(finding(
        "user namespaces",
        good_or(remapped, Fit::Less),
        if remapped {
            "root in a stack is nobody outside; inotify and the like are counted for all stacks \
             together"
        } else {
            "root in a stack is root outside, without its capabilities; inotify and the like are \
             counted with the machine's"
        },
        "set \"userns-remap\": \"default\" in the engine's daemon.json; all stacks then share one \
         range of ids, where the oci runtime gives each its own",
    ));
    let status: HashMap<_, _> = (info.driver_status.iter().flatten())
        .filter_map(|pair| Some((pair.first()?.as_str(), pair.get(1)?.as_str())))
        .collect();
    let driver = info.driver.as_deref().unwrap_or("unknown");
    let below = status.get("Backing Filesystem").copied().unwrap_or("unknown");
    // containerd keeps the images then, and has no word for a limit.
    let of_containerd =
        status.get("driver-type").is_some_and(|kind| kind.starts_with("io.containerd."));
    let may_limit = !of_containerd
        && (matches!(driver, "btrfs" | "zfs" | "devicemapper")
            || (driver.starts_with("overlay") && below == "xfs"));
    findings.push(finding(
        "disk limit",
        good_or(may_limit && config.is_here(), Fit::Less),
        &format!("{driver} on {below} {}", disk(may_limit, config.is_here())),
        match may_limit {
            true => "use an engine on this machine (unix://…), where volumes are watched",
            false => "keep the engine's data on XFS mounted with pquota",
        },
    ));
    let live = info.live_restore_enabled == Some(true);
    findings.push(finding(
        "live restore",
        good_or(live, Fit::Less),
        if live {
            "stacks outlive a restart of the engine"
        } else {
            "a restart of the engine ends all stacks"
        },
        "set \"live-restore\": true in the engine's daemon.json",
    ));
    if !config.is_here() {
        findings.push(finding(
            "network",
            Fit::Less,
            "the engine is elsewhere: stacks reach its machine, and what routes back to them",
            "use an engine on this machine (unix://…), or keep the engine's machine apart by its \
             own firewall",
        ));
        if config.is_in_clear() {
            findings.push(finding(
                "engine TLS",
                Fit::Less,
                "the engine is spoken to in clear text: who reads it is root there",
                "give --docker-tls-ca, --docker-tls-cert and --docker-tls-key",
            ));
        }
    }
    let known = info.runtimes.as_ref();
    findings.push(Finding {
        name: "runtime classes",
        fit: Fit::Good,
        found: classes(config, info),
        fix: "",
    });
    for (class, runtime) in &config.runtime_classes {
        if !known.is_some_and(|known| known.contains_key(runtime)) {
            findings.push(Finding {
                name: "runtime class",
                fit: Fit::Not,
                found: format!("{class}: the engine has no runtime {runtime:?}"),
                fix: "add it to \"runtimes\" in the engine's daemon.json, or leave the class out",
            });
        }
    }
    findings
}

/// How much of the disk stacks are kept from, by the engine or by being looked at.
fn disk(may_limit: bool, is_here: bool) -> &'static str {
    match (may_limit, is_here) {
        (true, true) => {
            "may limit the bytes of each container, not how many files; volumes are watched, and a \
             stack that has written too much there is ended"
        }
        (true, false) => {
            "may limit the bytes of each container, not how many files; volumes on an engine \
             elsewhere are neither limited nor watched"
        }
        (false, true) => {
            "cannot: use is watched, and a stack that has written too much is ended; a file that is \
             deleted and still open is not seen"
        }
        (false, false) => {
            "cannot: use is watched, and a stack that has written too much is ended; volumes and \
             the number of files are not, on an engine elsewhere"
        }
    }
}

/// What serves each class, and what else could.
fn classes(config: &DockerConfig, info: &SystemInfo) -> String {
    let usual = info.default_runtime.as_deref().unwrap_or("the engine's own");
    let served = config.classes().into_iter().map(|class| {
        let runtime = config.engine_runtime(&class);
        format!("{class} ({})", runtime.as_deref().unwrap_or(usual))
    });
    let mut text = served.collect::<Vec<_>>().join(", ");
    let named = |name: &&String| {
        *name != usual && config.runtime_classes.values().all(|runtime| runtime != *name)
    };
    let mut others: Vec<_> = info.runtimes.iter().flat_map(HashMap::keys).filter(named).collect();
    others.sort();
    if !others.is_empty() {
        let others = others.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("; the engine also has {others}"));
    }
    text
}

/// Refuses an engine that lacks what isolation cannot do without.
pub(super) fn check(
    docker: &Docker,
    config: &DockerConfig,
    info: &SystemInfo,
) -> Result<(), EngineError> {
    let lacks: Vec<_> = std::iter::once(api(docker))
        .chain(judged(config, info))
        .filter(|finding| finding.fit == Fit::Not)
        .map(|finding| format!("{} ({}; {})", finding.name, finding.found, finding.fix))
        .collect();
    if lacks.is_empty() {
        return Ok(());
    }
    let lack = format!("lacks what stacks need: {}", lacks.join(", "));
    Err(EngineError::Unfit { host: config.host.clone(), lack })
}

/// Finds out what the engine can do that it does not say.
pub(super) async fn abilities(
    docker: &Docker,
    config: &DockerConfig,
    info: &SystemInfo,
) -> Abilities {
    Abilities {
        limits_disk: limits_disk(docker).await,
        is_here: config.is_here(),
        cgroup_v2: info.cgroup_version == Some(CgroupVersion::_2),
    }
}

/// Whether the engine makes a container with a limited disk.
async fn limits_disk(docker: &Docker) -> bool {
    let body = ContainerCreateBody {
        image: Some(pause::IMAGE.to_owned()),
        labels: Some(HashMap::from([(objects::INSTANCE.to_owned(), "survey".to_owned())])),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            storage_opt: Some(HashMap::from([("size".to_owned(), "67108864".to_owned())])),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let none = None::<bollard::query_parameters::CreateContainerOptions>;
    let Ok(made) = docker.create_container(none, body).await else { return false };
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    if let Err(error) = docker.remove_container(&made.id, Some(options)).await {
        tracing::warn!(error = chain(&error), "a container that was only tried stays");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settings_that_name_no_engine_are_not_the_engines_fault() {
        let config = DockerConfig {
            host: "tcp://192.0.2.1:2376".to_owned(),
            tls_ca: Some("/ca.pem".into()),
            ..DockerConfig::default()
        };
        let findings = survey(&config, &RoomPolicy::default(), &Requested::default()).await;
        let [only] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((only.name, only.fit), ("settings", Fit::Not));
        assert!(only.fix.starts_with("correct the settings"), "{only:?}");
    }

    #[test]
    fn what_an_engine_cannot_limit_is_said() {
        let said = |host: &str, name: &str, below: &str| {
            let config = DockerConfig { host: host.to_owned(), ..DockerConfig::default() };
            let info = SystemInfo {
                memory_limit: Some(true),
                swap_limit: Some(true),
                cpu_cfs_quota: Some(true),
                pids_limit: Some(true),
                driver: Some("overlay2".to_owned()),
                driver_status: Some(vec![vec!["Backing Filesystem".to_owned(), below.to_owned()]]),
                ..SystemInfo::default()
            };
            let found = judged(&config, &info).into_iter().find(|finding| finding.name == name);
            found.map(|finding| (finding.fit, finding.found)).unwrap()
        };
        let (here, there) = ("unix:///docker.sock", "tcp://192.0.2.1:2376");
        assert!(said(here, "limits", "xfs").1.contains("of each container only"));
        assert!(said(here, "user namespaces", "xfs").1.contains("counted with the machine's"));
        let (fit, text) = said(here, "disk limit", "xfs");
        assert!(fit == Fit::Good && text.contains("not how many files"), "{text}");
        assert!(text.contains("volumes are watched"), "{text}");
        let (fit, text) = said(there, "disk limit", "xfs");
        assert!(fit == Fit::Less && text.contains("neither limited nor watched"), "{text}");
        assert!(said(there, "disk limit", "extfs").1.contains("number of files are not"));
    }
}
