//! The rights that this runtime needs: one list, for `stackd doctor`, for the chart's roles, and for
//! the test that compares it with what the API server was asked for.

/// A right on a kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The kind, in the plural, with a subresource after a slash.
    pub resource: &'static str,
    /// What is done with it.
    pub verbs: &'static [&'static str],
    /// Whether it is about the whole cluster, not about the namespace of stacks.
    pub of_cluster: bool,
    /// What does not work without it.
    pub purpose: &'static str,
    /// Whether the server starts without it.
    pub optional: bool,
}

/// All of them.
pub const PERMISSIONS: &[Permission] = &[
    Permission {
        group: "networking.k8s.io",
        resource: "networkpolicies",
        verbs: &["create", "delete", "list", "watch"],
        of_cluster: false,
        purpose: "closing stacks off, and removing them",
        optional: false,
    },
    Permission {
        group: "",
        resource: "services",
        verbs: &["create", "delete", "list", "watch"],
        of_cluster: false,
        purpose: "node ports",
        optional: false,
    },
    Permission {
        group: "",
        resource: "pods",
        verbs: &["create", "delete", "list", "patch", "watch"],
        of_cluster: false,
        purpose: "containers; `patch` ends those of a stack that has failed, and keeps its logs",
        optional: false,
    },
    Permission {
        group: "",
        resource: "pods/log",
        verbs: &["get"],
        of_cluster: false,
        purpose: "logs",
        optional: false,
    },
    // Which of the two is asked for depends on the version of the API server.
    Permission {
        group: "",
        resource: "pods/exec",
        verbs: &["create", "get"],
        of_cluster: false,
        purpose: "commands in stacks",
        optional: false,
    },
    Permission {
        group: "",
        resource: "nodes",
        verbs: &["get", "list", "watch"],
        of_cluster: true,
        purpose: "addresses of nodes, and whether they are lost",
        optional: false,
    },
    Permission {
        group: "node.k8s.io",
        resource: "runtimeclasses",
        verbs: &["get"],
        of_cluster: true,
        purpose: "finding a missing RuntimeClass at the start",
        optional: false,
    },
    Permission {
        group: "metrics.k8s.io",
        resource: "pods",
        verbs: &["get"],
        of_cluster: false,
        purpose: "what a stack uses",
        optional: true,
    },
    Permission {
        group: "",
        resource: "resourcequotas",
        verbs: &["list"],
        of_cluster: false,
        purpose: "the quota that `stackd doctor` shows",
        optional: true,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of the chart, without its comments, and those that the list comes to.
    #[test]
    fn the_chart_grants_exactly_this() {
        let files = [
            (false, include_str!("../../../../deploy/helm/stackd/files/role.yaml")),
            (true, include_str!("../../../../deploy/helm/stackd/files/cluster-role.yaml")),
        ];
        for (of_cluster, file) in files {
            let granted = file.lines().filter(|line| !line.starts_with('#'));
            let granted: String = granted.flat_map(|line| [line, "\n"]).collect();
            let used = PERMISSIONS.iter().filter(|one| one.of_cluster == of_cluster);
            let used: String = used
                .map(|one| {
                    let Permission { group, resource, verbs, .. } = one;
                    format!(
                        "- apiGroups: [{group:?}]\n  resources: [{resource:?}]\n  verbs: {verbs:?}\n"
                    )
                })
                .collect();
            assert_eq!(granted, used);
        }
    }
}
