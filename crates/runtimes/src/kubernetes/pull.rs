//! Nodes pull the images, each when it needs one. Here it is decided which they may be asked for, and
//! what a caller is told of one that a node cannot get. That is never the kubelet's own text: the
//! caller names the registry, and the text tells what answers at an address of the nodes' network.

use oci_spec::distribution::Reference;
use stackd_core::RuntimeError;

use super::config::KubernetesConfig;
use crate::images;

/// Refuses an image of a registry that is not among those allowed. What a node has already is not
/// known here, and a cluster may be set to pull whatever the policy of a container says; so this
/// holds for every image.
pub(super) fn check(config: &KubernetesConfig, image: &str) -> Result<(), RuntimeError> {
    let allowed = &config.allowed_registries;
    if allowed.is_empty() {
        return Ok(());
    }
    images::allow(allowed, &images::parse(image)?)
}

/// Whether a container waits with this word because its image could not be had.
pub(super) fn has_failed(word: &str) -> bool {
    let words =
        ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed"];
    words.contains(&word)
}

/// What a kubelet's text about a pull comes to.
pub(super) struct Told {
    /// Trying again does not help: the registry has said that it has no such image, or none for us.
    /// One that is away may come back.
    pub(super) is_final: bool,
    /// What the caller is told.
    pub(super) text: String,
}

/// Translates a kubelet's text. It has no codes, only words.
pub(super) fn told(image: &str, said: &str) -> Told {
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let name = image.parse::<Reference>();
    let registry = name.as_ref().map_or("its registry", Reference::registry);
    let is = |is_final, text| Told { is_final, text };
    if any(&["no match for platform"]) {
        return is(true, format!("image \"{image}\" is not made for the machine of the node"));
    }
    // Docker Hub says of what is not public that it may not exist, so this comes first.
    if any(&["insufficient_scope", "access denied", "unauthorized", "403 Forbidden"]) {
        return is(true, format!("{registry} denies access to image \"{image}\""));
    }
    if any(&["not found", "manifest unknown"]) {
        return is(true, format!("image \"{image}\" does not exist in {registry}"));
    }
    if any(&["no space left"]) {
        return is(false, "the node has no disk space left for the image".to_owned());
    }
    is(false, format!("image \"{image}\" cannot be pulled from {registry}; it is tried again"))
}

#[cfg(test)]
mod tests {
    use stackd_core::runtime::ErrorKind;
    use stackd_core::stack::reason;

    use super::*;

    #[test]
    fn only_images_of_the_registries_that_are_named_may_be_used() {
        let mut config = KubernetesConfig::default();
        check(&config, "anything.example/app:1").unwrap();
        // What is wrong with a name is the kubelet's to say where nothing is forbidden.
        check(&config, "Registry/app").unwrap();
        config.allowed_registries =
            vec!["docker.io".to_owned(), "registry.example:5000".to_owned()];
        for image in ["nginx", "index.docker.io/a/b:1", "registry.example:5000/app"] {
            check(&config, image).unwrap();
        }
        for (image, registry) in [
            ("registry.example/app", "registry.example"),
            ("10.0.0.5:5000/app", "10.0.0.5:5000"),
            ("docker.io.example/app", "docker.io.example"),
        ] {
            let error = check(&config, image).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Rejected, "{image}");
            assert_eq!(error.condition.reason, reason::IMAGE_PULL);
            let text = format!("images of {registry} may not be pulled here");
            assert_eq!(error.condition.message, text);
        }
        // A node would ask a host of this name, which the list does not have.
        let error = check(&config, "Registry/app").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
        assert!(error.condition.message.starts_with("invalid image reference"), "{error:?}");
    }

    #[test]
    fn what_answers_at_an_address_is_not_told() {
        let image = "10.0.0.5:5000/app:1";
        let resolve = "failed to pull and unpack image \"10.0.0.5:5000/app:1\": failed to resolve \
                       reference \"10.0.0.5:5000/app:1\": failed to do request: Head \
                       \"https://10.0.0.5:5000/v2/app/manifests/1\": ";
        let waits =
            format!("image \"{image}\" cannot be pulled from 10.0.0.5:5000; it is tried again");
        for why in [
            "dial tcp 10.0.0.5:5000: connect: connection refused",
            "dial tcp 10.0.0.5:5000: i/o timeout",
            "http: server gave HTTP response to HTTPS client",
            "tls: failed to verify certificate: x509: certificate is valid for vault.internal",
        ] {
            let told = told(image, &format!("{resolve}{why}"));
            assert!(!told.is_final, "{why}");
            assert_eq!(told.text, waits, "{why}");
        }
        assert_eq!(told(image, &format!("Back-off pulling image \"{image}\"")).text, waits);
    }

    #[test]
    fn what_a_registry_has_said_is_told_apart() {
        for (said, text) in [
            (
                "failed to resolve reference \"a.example/b:1\": a.example/b:1: not found",
                "image \"a.example/b:1\" does not exist in a.example",
            ),
            (
                "pull access denied, repository does not exist or may require authorization: \
                 server message: insufficient_scope: authorization failed",
                "a.example denies access to image \"a.example/b:1\"",
            ),
            (
                "no match for platform in manifest: not found",
                "image \"a.example/b:1\" is not made for the machine of the node",
            ),
        ] {
            let told = told("a.example/b:1", said);
            assert!(told.is_final, "{said}");
            assert_eq!(told.text, text);
        }
        let full = told("a.example/b:1", "write /var/lib/x: no space left on device");
        assert!(!full.is_final);
        assert_eq!(full.text, "the node has no disk space left for the image");
    }
}
