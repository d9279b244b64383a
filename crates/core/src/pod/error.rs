//! Why a Pod is refused, in the words of the provisioner's documents.

/// The Pod is not one that can run here. Shown to the caller after `invalid pod spec: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// Not YAML, too large, a field of a wrong type, or a bad quantity: where and why.
    #[error("yaml parse failed: {0}")]
    Yaml(String),
    /// Absent or another kind.
    #[error("kind must be Pod")]
    Kind,
    /// One of the host's namespaces is asked for.
    #[error("hostNetwork/hostPID/hostIPC are forbidden")]
    HostNamespace,
    /// `spec.securityContext` is there; it is replaced, so none can be given.
    #[error("pod securityContext is forbidden in input")]
    PodSecurityContext,
    /// A container's `securityContext` is there; it is replaced, so none can be given.
    #[error("container securityContext is forbidden in input")]
    ContainerSecurityContext,
    /// `serviceAccountName` or `serviceAccount`.
    #[error("serviceAccount is forbidden in input")]
    ServiceAccount,
    /// `nodeName` or `runtimeClassName`.
    #[error("nodeName/runtimeClassName are forbidden in input")]
    Placement,
    /// `ephemeralContainers`.
    #[error("ephemeralContainers are forbidden")]
    EphemeralContainers,
    /// A volume of the host.
    #[error("hostPath volume is forbidden")]
    HostPath,
    /// A volume with a token of the cluster.
    #[error("projected serviceAccountToken is forbidden")]
    ServiceAccountToken,
    /// No main container.
    #[error("at least one container is required")]
    NoContainers,
    /// A container without a name.
    #[error("container name is required")]
    NoContainerName,
    /// Two containers of one name, init containers included.
    #[error("duplicate container name \"{0}\"")]
    DuplicateContainerName(String),
    /// A container without an image.
    #[error("container image is required")]
    NoImage,
    /// An image that no registry can have.
    #[error("invalid image reference \"{0}\"")]
    InvalidImage(String),
    /// An init container has ports.
    #[error("initContainer ports are forbidden")]
    InitContainerPorts,
    /// CPU or memory is neither in requests nor in limits nor has a default, or is 0.
    #[error("request/limit must be set")]
    NoResources,
    /// `containerPort` is absent or not 1–65535.
    #[error("invalid container port")]
    InvalidContainerPort,
    /// A port of the host is asked for.
    #[error("hostPort/hostIP are forbidden")]
    HostPort,
    /// A port with another protocol.
    #[error("protocol must be TCP or UDP")]
    Protocol,
    /// No main container has a port.
    #[error("at least one exposed container port is required")]
    NoExposedPort,
    /// A port to publish that no main container has.
    #[error("target_port must exist in container ports")]
    TargetPort,
    /// A field that Pods here do not have, or a value that it cannot have here.
    #[error("unknown or unsupported field {path}{}", reason(.why.as_ref()))]
    Unsupported {
        /// Which field, for example `spec.containers[0].env[1].valueFrom`.
        path: String,
        /// What is wrong with its value, where the field as such is known.
        why: Option<String>,
    },
}

fn reason(why: Option<&String>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}
