//! What the kernel tells a process about itself.

/// The first line of a file.
pub fn first_line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

/// One field of `/proc/self/status`.
pub fn status(field: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(field))?;
    Some(line[field.len() + 1..].split_whitespace().collect::<Vec<_>>().join(" "))
}
