//! What one stack may ask for.

use serde::{Deserialize, Serialize};

use super::{Amounts, Resource};
use crate::pod::PodDefaults;
use crate::quantity::Quantity;
use crate::spec::{Container, Requested, StackSpec};

/// The least and the most of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Not less than this.
    #[serde(default)]
    pub min: Amounts,
    /// Not more than this.
    #[serde(default)]
    pub max: Amounts,
}

/// The least and the most of one container, and what it gets when it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerBounds {
    /// Not less than this.
    #[serde(default)]
    pub min: Amounts,
    /// Not more than this.
    #[serde(default)]
    pub max: Amounts,
    /// For a container that names none. Without it, CPU and memory must be named.
    #[serde(default)]
    pub default: Amounts,
}

/// What one stack may ask for. Everything may be left out, and is then unbounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitRange {
    /// Holds for each container.
    #[serde(default)]
    pub container: ContainerBounds,
    /// Holds for the whole stack.
    #[serde(default)]
    pub stack: Bounds,
}

/// A stack asks for less or more than it may. Shown after `invalid pod spec: `, in the words of
/// Kubernetes: `maximum cpu usage per Container is 2, but limit is 4`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .violations.join(", "))]
pub struct LimitViolation {
    violations: Vec<String>,
}

/// The configured limits contradict each other, so that no stack could ever be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {resource}: {lesser} exceeds {greater}")]
pub struct ContradictoryLimits {
    /// `container` or `stack`.
    part: &'static str,
    /// `cpu`, `memory` or `disk`.
    resource: Resource,
    /// Which setting is too great, and its value.
    lesser: String,
    /// Which setting it exceeds, and its value.
    greater: String,
}

impl LimitRange {
    /// What to fill into a Pod that does not say.
    pub fn pod_defaults(&self) -> PodDefaults {
        let default = &self.container.default;
        PodDefaults {
            cpu_milli: default.cpu.map(Quantity::milli),
            memory_bytes: default.memory.map(Quantity::units),
        }
    }

    /// The disk of a container that names none, where configured.
    pub fn default_disk_bytes(&self) -> Option<u64> {
        self.container.default.disk.map(Quantity::units)
    }

    /// Checks a stack. `default_disk_bytes` counts for containers that name no disk.
    pub fn check(&self, spec: &StackSpec, default_disk_bytes: u64) -> Result<(), LimitViolation> {
        let mut violations = Vec::new();
        let bounds = Bounds { min: self.container.min, max: self.container.max };
        for container in spec.all_containers() {
            let asked = requested_by(container, default_disk_bytes);
            bounds.check(&asked, "Container", &mut violations);
        }
        self.stack.check(&spec.requested(default_disk_bytes), "Pod", &mut violations);
        // Several containers over one limit are told once.
        let mut seen = std::collections::BTreeSet::new();
        violations.retain(|violation| seen.insert(violation.clone()));
        if violations.is_empty() { Ok(()) } else { Err(LimitViolation { violations }) }
    }

    /// Checks the configuration itself: no least above the most, no default outside both.
    pub fn validate(&self) -> Result<(), ContradictoryLimits> {
        let Self { container, stack } = self;
        for resource in Resource::ALL {
            let below = |part, lesser: (&str, &Amounts), greater: (&str, &Amounts)| match (
                lesser.1.of(resource),
                greater.1.of(resource),
            ) {
                (Some(less), Some(more)) if less.exceeds(more) => Err(ContradictoryLimits {
                    part,
                    resource,
                    lesser: format!("{} {less}", lesser.0),
                    greater: format!("{} {more}", greater.0),
                }),
                _ => Ok(()),
            };
            below("container", ("min", &container.min), ("max", &container.max))?;
            below("container", ("min", &container.min), ("default", &container.default))?;
            below("container", ("default", &container.default), ("max", &container.max))?;
            below("stack", ("min", &stack.min), ("max", &stack.max))?;
        }
        Ok(())
    }
}

fn requested_by(container: &Container, default_disk_bytes: u64) -> Requested {
    let resources = &container.resources;
    Requested {
        cpu_milli: resources.cpu_milli,
        memory_bytes: resources.memory_bytes,
        disk_bytes: resources.ephemeral_storage_bytes.unwrap_or(default_disk_bytes),
    }
}

impl Bounds {
    fn check(&self, asked: &Requested, of: &str, violations: &mut Vec<String>) {
        for resource in Resource::ALL {
            let amount = resource.amount(asked.of(resource));
            if let Some(min) = self.min.of(resource)
                && min.exceeds(amount)
            {
                violations.push(format!(
                    "minimum {resource} usage per {of} is {min}, but request is {amount}"
                ));
            }
            if let Some(max) = self.max.of(resource)
                && amount.exceeds(max)
            {
                violations.push(format!(
                    "maximum {resource} usage per {of} is {max}, but limit is {amount}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Quota;
    use super::*;
    use crate::pod::PodDefaults;
    use crate::port::TargetPorts;

    fn q(text: &str) -> Option<Quantity> {
        Some(text.parse().expect(text))
    }

    /// One container for each `(cpu, memory, disk)`.
    fn spec(containers: &[(&str, &str, &str)]) -> StackSpec {
        let mut yaml = "kind: Pod\nspec:\n  containers:\n".to_owned();
        for (index, (cpu, memory, disk)) in containers.iter().enumerate() {
            yaml += &format!(
                "  - name: c{index}\n    image: app\n    ports: [{{containerPort: 80}}]\n    \
                 resources: {{limits: {{cpu: {cpu}, memory: {memory}, ephemeral-storage: {disk}}}}}\n"
            );
        }
        crate::pod::parse(&yaml, &TargetPorts::Any(80), &PodDefaults::default()).expect(&yaml)
    }

    fn limits() -> LimitRange {
        LimitRange {
            container: ContainerBounds {
                min: Amounts { memory: q("16Mi"), ..Amounts::default() },
                max: Amounts { cpu: q("2"), memory: q("1Gi"), disk: q("2Gi") },
                default: Amounts::default(),
            },
            stack: Bounds {
                max: Amounts { cpu: q("3"), ..Amounts::default() },
                ..Bounds::default()
            },
        }
    }

    #[test]
    fn what_is_outside_the_limits_is_told_as_in_kubernetes() {
        let cases: &[(&[_], &str)] = &[
            (&[("2", "1Gi", "2Gi")], ""),
            (&[("100m", "16Mi", "0")], ""),
            (&[("2", "1Gi", "0"), ("1", "1Gi", "0")], ""),
            (
                &[("4", "1Gi", "0")],
                "maximum cpu usage per Container is 2, but limit is 4, \
              maximum cpu usage per Pod is 3, but limit is 4",
            ),
            (&[("2001m", "1Gi", "0")], "maximum cpu usage per Container is 2, but limit is 2001m"),
            (
                &[("1", "8Mi", "0")],
                "minimum memory usage per Container is 16Mi, \
              but request is 8Mi",
            ),
            (
                &[("1", "2Gi", "3Gi")],
                "maximum memory usage per Container is 1Gi, but limit is 2Gi, \
              maximum ephemeral-storage usage per Container is 2Gi, but limit is 3Gi",
            ),
            (
                &[("2", "1Gi", "0"), ("2", "1Gi", "0")],
                "maximum cpu usage per Pod is 3, \
              but limit is 4",
            ),
            (
                &[("1", "8Mi", "0"), ("1", "8Mi", "0")],
                "minimum memory usage per Container is 16Mi, \
              but request is 8Mi",
            ),
        ];
        for (containers, text) in cases {
            let violation = limits().check(&spec(containers), 1 << 20).err();
            let shown = violation.map(|violation| violation.to_string()).unwrap_or_default();
            assert_eq!(shown, *text, "{containers:?}");
        }
    }

    #[test]
    fn the_default_disk_counts_where_none_is_named() {
        let spec = spec(&[("1", "1Gi", "0")]);
        assert!(limits().check(&spec, 2 << 30).is_ok());
        assert!(limits().check(&spec, (2 << 30) + 1).is_err());
    }

    #[test]
    fn limits_are_read_from_a_file_by_people() {
        let json = r#"{"container": {"max": {"cpu": 2, "memory": "1Gi", "disk": "2Gi"},
                       "min": {"memory": "16Mi"}, "default": {"cpu": 0.1, "memory": "128Mi"}},
                       "stack": {"max": {"cpu": "3"}}}"#;
        let read: LimitRange = serde_json::from_str(json).expect("limits");
        let expected = PodDefaults { cpu_milli: Some(100), memory_bytes: Some(128 << 20) };
        assert_eq!(read.pod_defaults(), expected);
        assert_eq!(read.container.max, limits().container.max);
        assert_eq!(read.validate(), Ok(()));
        let written = serde_json::to_string(&read).expect("JSON");
        assert_eq!(serde_json::from_str::<LimitRange>(&written).ok(), Some(read), "{written}");

        for json in [r#"{"pod": {}}"#, r#"{"stack": {"max": {"gpu": 1}}}"#] {
            assert!(serde_json::from_str::<LimitRange>(json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<Quota>(r#"{"cpus": 1}"#).is_err());
    }

    #[test]
    fn contradictory_limits_are_refused() {
        let mut limits = limits();
        limits.container.default.memory = q("8Mi");
        let error = limits.validate().map_err(|error| error.to_string());
        assert_eq!(error, Err("container: memory: min 16Mi exceeds default 8Mi".to_owned()));
    }
}
