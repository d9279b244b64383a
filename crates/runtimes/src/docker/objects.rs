//! What the objects of stacks are called in the engine, and how they are told from others'.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use stackd_core::StackId;

/// Says that an object is of a server, and of which one: that of a data directory.
pub(super) const INSTANCE: &str = "io.stackd.instance";
/// Of which stack.
pub(super) const STACK: &str = "io.stackd.stack";
/// Of which generation of it.
pub(super) const GENERATION: &str = "io.stackd.generation";
/// Which container of it; none for the one that holds its network.
pub(super) const CONTAINER: &str = "io.stackd.container";

/// The labels of something of a stack.
pub(super) fn labels(
    instance: &str,
    id: StackId,
    generation: u64,
    container: Option<&str>,
) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (INSTANCE.to_owned(), instance.to_owned()),
        (STACK.to_owned(), id.to_string()),
        (GENERATION.to_owned(), generation.to_string()),
    ]);
    if let Some(container) = container {
        labels.insert(CONTAINER.to_owned(), container.to_owned());
    }
    labels
}

/// A filter for what is of this server.
pub(super) fn of_instance(instance: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{INSTANCE}={instance}")])])
}

/// A filter for what is of a stack of this server.
pub(super) fn of_stack(instance: &str, id: StackId) -> HashMap<String, Vec<String>> {
    let labels = vec![format!("{INSTANCE}={instance}"), format!("{STACK}={id}")];
    HashMap::from([("label".to_owned(), labels)])
}

/// The stack that something with these labels is of.
pub(super) fn stack_of(labels: &HashMap<String, String>) -> Option<StackId> {
    labels.get(STACK)?.parse().ok()
}

/// The name of a container.
pub(super) fn container(id: StackId, container: &str) -> String {
    format!("{id}.{container}")
}

/// The name of the container that holds the network of a stack with several.
pub(super) fn sandbox(id: StackId) -> String {
    id.to_string()
}

/// The name of a volume, or of a path in it that is mounted by itself.
pub(super) fn volume(id: StackId, volume: &str, sub_path: Option<&str>) -> String {
    match sub_path {
        None => format!("{id}.{volume}"),
        // Names are short and of few characters, paths are not.
        Some(path) => format!("{id}.{volume}.{}", hex::encode(&Sha256::digest(path)[..8])),
    }
}
