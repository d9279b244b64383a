//! The syntax of names, as Kubernetes defines it.

/// Why a name is refused: a rule, in words for the caller.
pub(super) type Rule = &'static str;

const LABEL: Rule = "must be a DNS label: at most 63 of a-z, 0-9 and -, not at either end -";
const SUBDOMAIN: Rule = "must be a DNS name: at most 253 of a-z, 0-9, - and .";
const KEY: Rule = "must be a name of at most 63 letters, digits, -, _ and ., \
                   optionally behind a DNS name and /";
const LABEL_VALUE: Rule = "must be at most 63 letters, digits, -, _ and ., \
                           with a letter or digit at both ends";
const PORT_NAME: Rule = "must be at most 15 of a-z, 0-9 and single -, with at least one letter";
const ENV_NAME: Rule = "must be printable ASCII without =";
const HEADER_NAME: Rule = "must be the name of an HTTP header";

fn rule(holds: bool, rule: Rule) -> Result<(), Rule> {
    if holds { Ok(()) } else { Err(rule) }
}

fn is_lower_alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn ends_with(text: &str, allowed: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|&b| allowed(b)) && bytes.last().is_some_and(|&b| allowed(b))
}

fn is_dns_label(text: &str) -> bool {
    text.len() <= 63
        && ends_with(text, is_lower_alphanumeric)
        && text.bytes().all(|b| is_lower_alphanumeric(b) || b == b'-')
}

fn is_dns_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        ends_with(part, is_lower_alphanumeric)
            && part.bytes().all(|b| is_lower_alphanumeric(b) || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn is_short_name(text: &str) -> bool {
    text.len() <= 63
        && ends_with(text, |b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The name of a container, a volume or a host.
pub(super) fn dns_label(text: &str) -> Result<(), Rule> {
    rule(is_dns_label(text), LABEL)
}

/// The name of a Pod.
pub(super) fn dns_subdomain(text: &str) -> Result<(), Rule> {
    rule(is_dns_subdomain(text), SUBDOMAIN)
}

/// The key of a label or an annotation.
pub(super) fn qualified(text: &str) -> Result<(), Rule> {
    let valid = match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_short_name(name),
        None => is_short_name(text),
    };
    rule(valid, KEY)
}

/// The value of a label.
pub(super) fn label_value(text: &str) -> Result<(), Rule> {
    rule(text.is_empty() || is_short_name(text), LABEL_VALUE)
}

/// The name of a port.
pub(super) fn port(text: &str) -> Result<(), Rule> {
    let valid = text.len() <= 15
        && is_dns_label(text)
        && !text.contains("--")
        && text.bytes().any(|b| b.is_ascii_lowercase());
    rule(valid, PORT_NAME)
}

/// The name of an environment variable.
pub(super) fn env(text: &str) -> Result<(), Rule> {
    let valid = !text.is_empty() && text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=');
    rule(valid, ENV_NAME)
}

/// The name of an HTTP header.
pub(super) fn header(text: &str) -> Result<(), Rule> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    rule(!text.is_empty() && text.bytes().all(token), HEADER_NAME)
}

/// The value of an HTTP header: a line break in it would start another.
pub(super) fn header_value(text: &str) -> Result<(), Rule> {
    let valid = text.chars().all(|c| c == '\t' || !c.is_control());
    rule(valid, "must be one line of text")
}

/// The kernel takes no longer path, its end included.
const MAX_PATH: usize = 4096;

fn short(path: &str) -> Result<(), Rule> {
    rule(path.len() < MAX_PATH, "must be at most 4095 bytes")
}

/// A path inside a container that cannot lead out of it.
pub(super) fn absolute_path(text: &str) -> Result<(), Rule> {
    short(text)?;
    let valid = text.starts_with('/') && text.split('/').all(|part| part != "..");
    rule(valid, "must be an absolute path without ..")
}

/// Where a volume may appear: not in place of what the kernel shows.
pub(super) fn mount_path(text: &str) -> Result<(), Rule> {
    absolute_path(text)?;
    let parts: Vec<_> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let kernels = matches!(parts.first(), None | Some(&("proc" | "sys" | "dev")));
    let shared_memory = parts == ["dev", "shm"];
    rule(!kernels || shared_memory, "must not be / nor in /proc, /sys or /dev (save /dev/shm)")
}

/// A path inside a volume that cannot lead out of it.
pub(super) fn relative_path(text: &str) -> Result<(), Rule> {
    short(text)?;
    let valid = !text.starts_with('/') && text.split('/').all(|part| part != "..");
    rule(valid, "must be a relative path without ..")
}
