//! From what an organiser wrote to a challenge, or to a list of everything that is wrong with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::extra::ExtraConfig;
use super::flag::Flag;
use super::{
    Challenge, ChallengeId, ChallengeNumber, ChallengePolicy, Class, Definition, Scheme, Source,
};
use crate::pod::{self, PodDefaults, PodError};
use crate::port::{MAX_TARGET_PORTS, Protocol, TargetPort, TargetPorts};
use crate::spec::{Restrictions, StackSpec};

/// CPU cores of a challenge that names none.
const DEFAULT_CPU_COUNT: u32 = 1;
/// Memory of a challenge that names none.
const DEFAULT_MEMORY_MB: u32 = 512;
/// The most characters of a name.
const MAX_NAME: usize = 200;

/// A challenge as it was written, its types right and nothing else checked yet. `None` was not
/// given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the API document")]
pub struct Draft {
    pub id: Option<String>,
    pub name: Option<String>,
    pub runtime: Option<String>,
    pub image: Option<String>,
    pub port: Option<i64>,
    pub protocol: Option<String>,
    pub cpu_count: Option<i64>,
    pub memory_mb: Option<i64>,
    pub ttl_seconds: Option<i64>,
    pub extra_config: Option<String>,
    pub pod_spec: Option<String>,
    pub target_port: Option<TargetPorts>,
    pub enabled: Option<bool>,
    pub stack_enabled: Option<bool>,
    pub destroy_on_solve: Option<bool>,
}

/// One thing that is wrong with a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Which field.
    pub field: &'static str,
    /// In which way.
    pub fault: Fault,
    /// What is wrong, in words that follow the field's name.
    pub message: String,
}

/// In which way a field is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It must be there.
    Missing,
    /// It cannot have this value.
    Value,
}

/// Collects what is wrong, so that all of it is told at once.
#[derive(Default)]
struct Faults(Vec<Invalid>);

impl Faults {
    fn wrong(&mut self, field: &'static str, message: impl Into<String>) {
        self.0.push(Invalid { field, fault: Fault::Value, message: message.into() });
    }

    fn required<T>(&mut self, field: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            let message = "is required".to_owned();
            self.0.push(Invalid { field, fault: Fault::Missing, message });
        }
        value
    }

    /// A whole number above 0: out of a set where there is one, or what it was before.
    fn amount(
        &mut self,
        field: &'static str,
        value: Option<i64>,
        default: u32,
        before: Option<u32>,
        allowed: &[u32],
    ) -> u32 {
        let Some(value) = value else { return default };
        let number = u32::try_from(value).ok().filter(|number| *number > 0);
        match number {
            Some(number)
                if allowed.is_empty() || allowed.contains(&number) || before == Some(number) =>
            {
                number
            }
            _ => {
                let list: Vec<_> = allowed.iter().map(u32::to_string).collect();
                self.wrong(
                    field,
                    match list.as_slice() {
                        [] => "must be a whole number above 0".to_owned(),
                        _ => format!("must be one of {}", list.join(", ")),
                    },
                );
                default
            }
        }
    }
}

impl Draft {
    /// The draft that this challenge would be written as.
    pub fn of(challenge: &Challenge) -> Self {
        let Definition {
            id,
            name,
            class,
            source,
            scheme,
            ttl_seconds,
            extra_config,
            enabled,
            stack_enabled,
            destroy_on_solve,
        } = challenge.definition.clone();
        let draft = Self {
            id: Some(id.to_string()),
            name: Some(name),
            runtime: Some(class.as_str().to_owned()),
            protocol: Some(scheme.as_str().to_owned()),
            ttl_seconds: ttl_seconds.map(|ttl| i64::try_from(ttl).unwrap_or(i64::MAX)),
            extra_config,
            enabled: Some(enabled),
            stack_enabled: Some(stack_enabled),
            destroy_on_solve: Some(destroy_on_solve),
            ..Self::default()
        };
        match source {
            Source::Image { image, port, cpu_count, memory_mb } => Self {
                image: Some(image),
                port: Some(port.into()),
                cpu_count: Some(cpu_count.into()),
                memory_mb: Some(memory_mb.into()),
                ..draft
            },
            Source::Pod { pod_spec, target_port } => {
                Self { pod_spec: Some(pod_spec), target_port: Some(target_port), ..draft }
            }
        }
    }

    /// Makes a new challenge, as of `now`.
    pub fn check(
        self,
        number: ChallengeNumber,
        policy: &ChallengePolicy,
        defaults: &PodDefaults,
        now: Timestamp,
    ) -> Result<Challenge, Vec<Invalid>> {
        self.make(number, None, policy, defaults, now)
    }

    /// Makes `before` into what this describes, as of `now`. What stays as it was is not held
    /// against a policy that came later: such a challenge can still be switched off.
    pub fn change(
        self,
        before: &Challenge,
        policy: &ChallengePolicy,
        defaults: &PodDefaults,
        now: Timestamp,
    ) -> Result<Challenge, Vec<Invalid>> {
        let changed = self.make(before.number, Some(before), policy, defaults, now)?;
        Ok(Challenge { created_at: before.created_at, ..changed })
    }

    fn make(
        self,
        number: ChallengeNumber,
        before: Option<&Challenge>,
        policy: &ChallengePolicy,
        defaults: &PodDefaults,
        now: Timestamp,
    ) -> Result<Challenge, Vec<Invalid>> {
        let mut faults = Faults::default();
        let id = faults.required("id", self.id.as_deref()).and_then(|id| {
            let parsed = id.parse::<ChallengeId>();
            parsed.map_err(|error| faults.wrong("id", error.to_string())).ok()
        });
        let name = faults.required("name", self.name.clone()).unwrap_or_default();
        if self.name.is_some() && name.trim().is_empty() {
            faults.wrong("name", "must not be blank");
        } else if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
            faults.wrong("name", format!("must be one line of at most {MAX_NAME} characters"));
        }
        let class = faults.required("runtime", self.runtime.as_deref()).and_then(|word| {
            let class = Class::ALL.into_iter().find(|class| class.as_str() == word);
            if class.is_none() {
                faults.wrong("runtime", "must be docker, kctf or kata-firecracker");
            }
            class
        });
        let ttl_seconds = self.ttl_seconds.and_then(|ttl| {
            let seconds = u64::try_from(ttl).ok().filter(|ttl| *ttl > 0);
            if seconds.is_none() {
                faults.wrong("ttl_seconds", "must be a whole number of seconds above 0");
            }
            seconds
        });
        let extra = match self.extra_config.as_deref().map(ExtraConfig::read) {
            None => ExtraConfig::default(),
            Some(Ok(extra)) => extra,
            Some(Err(error)) => {
                faults.wrong("extra_config", error);
                ExtraConfig::default()
            }
        };
        let scheme = self.scheme(&extra, &mut faults);
        let extra_before = before.map(|before| &before.definition.extra_config);
        let is_new = extra_before.is_none_or(|before| *before != self.extra_config);
        let is_derived = extra.flag.as_ref().is_some_and(Flag::is_derived);
        if is_derived && is_new && policy.flag_secret.is_none() {
            let text = "flag: a flag of each owner is derived from the server's flag_secret, which \
                        is not set; set it, or give one flag for all as value";
            faults.wrong("extra_config", text);
        }
        let described = match before.filter(|before| self.starts_as(before)) {
            Some(Challenge { definition, spec, .. }) => {
                Some((definition.source.clone(), StackSpec::clone(spec)))
            }
            None if self.pod_spec.is_some() => self.pod(&extra, defaults, &mut faults),
            None => self.image(&extra, before, policy, defaults, &mut faults),
        };
        if let (Some(flag), Some((_, spec))) = (&extra.flag, &described)
            && let Err(error) = flag.fits(spec)
        {
            faults.wrong("extra_config", error);
        }
        let (Some(id), Some(class), Some((source, spec)), true) =
            (id, class, described, faults.0.is_empty())
        else {
            return Err(faults.0);
        };
        Ok(Challenge {
            number,
            definition: Definition {
                id,
                name,
                class,
                source,
                scheme,
                ttl_seconds,
                extra_config: self.extra_config,
                enabled: self.enabled.unwrap_or(true),
                stack_enabled: self.stack_enabled.unwrap_or(true),
                destroy_on_solve: self.destroy_on_solve.unwrap_or(true),
            },
            spec: Arc::new(spec),
            created_at: now,
            updated_at: now,
        })
    }

    /// Whether stacks are made of the same as before. Then they stay as they are, whatever the defaults
    /// are today.
    fn starts_as(&self, before: &Challenge) -> bool {
        let before = Self::of(before);
        self.extra_config == before.extra_config
            && (&self.pod_spec, &self.target_port) == (&before.pod_spec, &before.target_port)
            && (&self.image, self.port) == (&before.image, before.port)
            && (self.cpu_count, self.memory_mb) == (before.cpu_count, before.memory_mb)
    }

    fn scheme(&self, extra: &ExtraConfig, faults: &mut Faults) -> Scheme {
        let given = self.protocol.as_deref().and_then(|word| {
            let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.as_str() == word);
            if scheme.is_none() {
                faults.wrong("protocol", "must be http or tcp");
            }
            scheme
        });
        match (given, extra.protocol) {
            (Some(own), Some(other)) if own != other => {
                faults.wrong("extra_config", format!("protocol is {} outside of it", own.as_str()));
                own
            }
            (own, other) => own.or(other).unwrap_or(Scheme::Http),
        }
    }

    fn pod(
        &self,
        extra: &ExtraConfig,
        defaults: &PodDefaults,
        faults: &mut Faults,
    ) -> Option<(Source, StackSpec)> {
        let given = [
            ("image", self.image.is_some()),
            ("port", self.port.is_some()),
            ("cpu_count", self.cpu_count.is_some()),
            ("memory_mb", self.memory_mb.is_some()),
        ];
        for (field, _) in given.into_iter().filter(|(_, given)| *given) {
            faults.wrong(field, "cannot stand beside pod_spec, which says it");
        }
        let container = !extra.env.is_empty()
            || extra.command.is_some()
            || extra.args.is_some()
            || extra.working_dir.is_some()
            || !extra.ports.is_empty();
        if container {
            let text = "env, command, args, working_dir and ports are the pod_spec's to say";
            faults.wrong("extra_config", text);
        }
        let pod_spec = self.pod_spec.clone()?;
        let target_port = faults.required("target_port", self.target_port.clone())?;
        match pod::parse(&pod_spec, &target_port, defaults) {
            Ok(spec) => {
                let spec = StackSpec { restrictions: restrictions(extra), ..spec };
                Some((Source::Pod { pod_spec, target_port }, spec))
            }
            Err(error @ PodError::TargetPort) => {
                faults.wrong("target_port", error.to_string());
                None
            }
            Err(error) => {
                faults.wrong("pod_spec", error.to_string());
                None
            }
        }
    }

    fn image(
        &self,
        extra: &ExtraConfig,
        before: Option<&Challenge>,
        policy: &ChallengePolicy,
        defaults: &PodDefaults,
        faults: &mut Faults,
    ) -> Option<(Source, StackSpec)> {
        if self.target_port.is_some() {
            faults.wrong("target_port", "belongs to pod_spec; an image has a port");
        }
        let (cpu_before, memory_before) = match before.map(|before| &before.definition.source) {
            Some(Source::Image { cpu_count, memory_mb, .. }) => {
                (Some(*cpu_count), Some(*memory_mb))
            }
            _ => (None, None),
        };
        let (cpus, memories) = (&policy.cpu_counts, &policy.memory_mbs);
        let cpu_count =
            faults.amount("cpu_count", self.cpu_count, DEFAULT_CPU_COUNT, cpu_before, cpus);
        let memory_mb =
            faults.amount("memory_mb", self.memory_mb, DEFAULT_MEMORY_MB, memory_before, memories);
        let image = faults.required("image", self.image.clone());
        let port = faults.required("port", self.port);
        let (image, port) = (image?, port?);
        let Some(port) = u16::try_from(port).ok().filter(|port| *port > 0) else {
            faults.wrong("port", "must be from 1 to 65535");
            return None;
        };
        let mut ports = vec![TargetPort { container_port: port, protocol: Protocol::Tcp }];
        ports.extend(extra.ports.iter().copied().map(TargetPort::from));
        if ports.iter().collect::<BTreeSet<_>>().len() < ports.len() {
            faults.wrong("extra_config", "ports names a port twice");
            return None;
        }
        if ports.len() > MAX_TARGET_PORTS {
            faults.wrong("extra_config", format!("ports exceeds the limit of {MAX_TARGET_PORTS}"));
            return None;
        }
        // Through the one door that every stack comes through: a JSON text is a YAML text.
        let pod = as_pod(&image, &ports, cpu_count, memory_mb, extra).to_string();
        match pod::parse(&pod, &TargetPorts::List(ports), defaults) {
            Ok(spec) => {
                let spec = StackSpec { restrictions: restrictions(extra), ..spec };
                Some((Source::Image { image, port, cpu_count, memory_mb }, spec))
            }
            Err(PodError::InvalidImage(_) | PodError::NoImage) => {
                faults.wrong("image", "must be an image reference such as registry.example/web:1");
                None
            }
            Err(error) => {
                faults.wrong("extra_config", error.to_string());
                None
            }
        }
    }
}

fn as_pod(
    image: &str,
    ports: &[TargetPort],
    cpu_count: u32,
    memory_mb: u32,
    extra: &ExtraConfig,
) -> Value {
    let env: Vec<_> =
        extra.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let ports: Vec<_> = ports
        .iter()
        .map(|p| json!({"containerPort": p.container_port, "protocol": p.protocol.as_str()}))
        .collect();
    let amounts = json!({"cpu": cpu_count.to_string(), "memory": format!("{memory_mb}Mi")});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {"containers": [{
            "name": "challenge",
            "image": image,
            "command": extra.command,
            "args": extra.args,
            "workingDir": extra.working_dir,
            "env": env,
            "ports": ports,
            "resources": {"requests": amounts, "limits": amounts},
        }]},
    })
}

fn restrictions(extra: &ExtraConfig) -> Restrictions {
    Restrictions {
        read_only_root: extra.read_only_root,
        pids_limit: extra.pids_limit.map(|limit| limit.0),
        drop_capabilities: extra.dropped(),
    }
}

#[cfg(test)]
mod tests;
