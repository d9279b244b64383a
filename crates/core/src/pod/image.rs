//! The syntax of image references: `nginx`, `registry.example/org/app:1.2`, `app@sha256:…`.

const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// Whether a registry can have an image of this name.
pub(super) fn is_reference(text: &str) -> bool {
    let (name_and_tag, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon before the last slash belongs to the port of a registry.
    let tag_at = name_and_tag.rfind(':').filter(|&at| !name_and_tag[at..].contains('/'));
    let (name, tag) = match tag_at {
        Some(at) => (&name_and_tag[..at], Some(&name_and_tag[at + 1..])),
        None => (name_and_tag, None),
    };
    is_name(name) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

fn is_name(name: &str) -> bool {
    let (host, path) = match name.split_once('/') {
        // What could be a host is one: it has a dot, a port or a capital, or is localhost.
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    };
    name.len() <= MAX_NAME_BYTES && host.is_none_or(is_host) && path.split('/').all(is_component)
}

fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<std::net::Ipv6Addr>().is_ok()
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (name, port) = host.split_once(':').map_or((host, None), |(n, p)| (n, Some(p)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Lower-case words with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_in_words =
        bytes.first().is_some_and(|&b| word(b)) && bytes.last().is_some_and(|&b| word(b));
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends_in_words
        && separators.into_iter().all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let first = tag.as_bytes().first();
    tag.len() <= MAX_TAG_BYTES
        && first.is_some_and(|&b| b.is_ascii_alphanumeric() || b == b'_')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Only digests that can be verified.
fn is_digest(digest: &str) -> bool {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        let length = match algorithm {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return false,
        };
        hex.len() == length && hex.bytes().all(lower_hex)
    })
}

#[cfg(test)]
mod tests {
    use super::is_reference;

    #[test]
    fn references_are_told_from_other_text() {
        let sha256 = "0123456789abcdef".repeat(4);
        for text in [
            "nginx",
            "nginx:stable",
            "library/nginx",
            "a/b/c/d:V1.2_x-y",
            "localhost/app",
            "localhost:5000/app:1",
            "127.0.0.1:5000/app",
            "[::1]:5000/app",
            "[fe80::1]/app",
            "Registry.Example/app",
            "registry.example/org/app-name_x__y.z--w",
            "1",
            &format!("app@sha256:{sha256}"),
            &format!("registry.example:443/org/app:1@sha256:{sha256}"),
        ] {
            assert!(is_reference(text), "{text:?}");
        }
        for text in [
            "",
            " nginx",
            "nginx ",
            "NGINX",
            "nginx:",
            "nginx:-x",
            "nginx:a b",
            "nginx:a:b",
            "nginx@",
            "nginx@sha256:abc",
            "nginx@md5:0123456789abcdef0123456789abcdef",
            "/nginx",
            "nginx/",
            "a//b",
            "a/../b",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "http://example.com/app",
            "example.com:x/app",
            "example.com:99999/app",
            "exa_mple.com/App",
            "[::g]/app",
            "ngïnx",
            "a\0b",
            "$(id)",
            &format!("nginx:{}", "t".repeat(129)),
            &"n".repeat(256),
        ] {
            assert!(!is_reference(text), "{text:?}");
        }
    }
}
