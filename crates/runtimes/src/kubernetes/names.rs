//! What marks an object of the cluster as ours, and as which stack's.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use stackd_core::{PortMapping, StackId};

use super::config::KubernetesConfig;

/// Whose objects these are: one server's, or one database's.
pub(super) const INSTALLATION: &str = "app.kubernetes.io/part-of";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const NAME: &str = "app.kubernetes.io/name";
/// Which stack it is of.
pub(super) const STACK: &str = "app.kubernetes.io/instance";
/// The generation that it was made from.
pub(super) const GENERATION: &str = "stackd.dev/generation";
/// The epoch of the engine that made it.
pub(super) const EPOCH: &str = "stackd.dev/epoch";

/// The node ports of a stack, so that its service can be made again by whoever never saw it.
const PORTS: &str = "stackd.dev/ports";

const US: &str = "stackd";

/// What selects the objects of this installation.
pub(super) fn selector(config: &KubernetesConfig) -> String {
    format!("{MANAGED_BY}={US},{INSTALLATION}={}", config.installation)
}

/// What selects the pod of a stack.
pub(super) fn pod_selector(id: StackId) -> BTreeMap<String, String> {
    BTreeMap::from([(STACK.to_owned(), id.to_string())])
}

/// The metadata of an object of a stack.
pub(super) fn metadata(
    config: &KubernetesConfig,
    name: String,
    id: StackId,
    (generation, epoch): (u64, u64),
    owner: Option<OwnerReference>,
) -> ObjectMeta {
    let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    ObjectMeta {
        name: Some(name),
        namespace: Some(config.namespace.clone()),
        labels: Some(BTreeMap::from([
            text((NAME, "stack")),
            text((MANAGED_BY, US)),
            text((INSTALLATION, &config.installation)),
            text((STACK, &id.to_string())),
        ])),
        annotations: Some(BTreeMap::from([
            text((GENERATION, &generation.to_string())),
            text((EPOCH, &epoch.to_string())),
        ])),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Writes down the ports of a stack.
pub(super) fn note_ports(metadata: &mut ObjectMeta, ports: &[PortMapping]) {
    // A list of numbers and words: it can be written.
    let text = serde_json::to_string(ports).unwrap_or_default();
    metadata.annotations.get_or_insert_default().insert(PORTS.to_owned(), text);
}

/// The ports that were written down; none where there are none.
pub(super) fn ports(metadata: &ObjectMeta) -> Box<[PortMapping]> {
    let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(PORTS));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The stack that an object is of, if it is one of ours.
pub(super) fn stack_of(metadata: &ObjectMeta) -> Option<StackId> {
    metadata.labels.as_ref()?.get(STACK)?.parse().ok()
}

/// Whether an object is this installation's, and of this stack.
pub(super) fn is_of(metadata: &ObjectMeta, config: &KubernetesConfig, id: StackId) -> bool {
    let label = |key| metadata.labels.as_ref().and_then(|labels| labels.get(key));
    label(MANAGED_BY).is_some_and(|us| us == US)
        && label(INSTALLATION) == Some(&config.installation)
        && stack_of(metadata) == Some(id)
}

/// A number in an annotation of ours.
pub(super) fn number(metadata: &ObjectMeta, key: &str) -> Option<u64> {
    metadata.annotations.as_ref()?.get(key)?.parse().ok()
}
