//! Images as people and scripts read them.

use stackd_core::Timestamp;
use stackd_runtimes::oci::images::{Digest, ImageSummary};

use super::ListOutput;
use super::work::Done;
use crate::table;

pub(super) fn added(done: &Done, quiet: bool) -> String {
    let Done::Added(images) = done else { return String::new() };
    let line = |image: &super::work::AddedImage| match (quiet, image.names.is_empty()) {
        (true, _) | (_, true) => format!("{}\n", image.digest),
        _ => format!("{} {}\n", image.names.join(" "), image.digest),
    };
    images.iter().map(line).collect()
}

pub(super) fn removed(done: &Done) -> String {
    let Done::Removed(removed) = done else { return String::new() };
    let names = removed.untagged.iter().map(|name| format!("untagged {name}\n"));
    let images = removed.deleted.iter().map(|digest| format!("deleted {digest}\n"));
    names.chain(images).chain([format!("freed {}\n", size(removed.freed_bytes))]).collect()
}

pub(super) fn details(done: &Done) -> anyhow::Result<String> {
    match done {
        Done::Details(details) => Ok(serde_json::to_string_pretty(details)? + "\n"),
        _ => anyhow::bail!("the server answered something else"),
    }
}

pub(super) fn list(done: Done, output: ListOutput) -> anyhow::Result<String> {
    let Done::Listed(images) = done else { anyhow::bail!("the server answered something else") };
    Ok(match output {
        ListOutput::Json => serde_json::to_string_pretty(&images)? + "\n",
        ListOutput::Name => {
            images.iter().flat_map(|i| &i.names).map(|name| format!("{name}\n")).collect()
        }
        ListOutput::Table => {
            let rows: Vec<_> = images.iter().flat_map(rows).collect();
            table::render(["IMAGE", "DIGEST", "PLATFORM", "SIZE", "ADDED", "IN USE"], &rows)
        }
    })
}

/// A row for each name.
fn rows(image: &ImageSummary) -> Vec<[String; 6]> {
    let none = ["<none>".to_owned()];
    let names = if image.names.is_empty() { &none[..] } else { &image.names };
    let row = |name: &String| {
        [
            name.clone(),
            digest(&image.digest),
            image.platform.clone(),
            size(image.size_bytes),
            day(image.stored_at),
            if image.leases > 0 { image.leases.to_string() } else { "-".to_owned() },
        ]
    };
    names.iter().map(row).collect()
}

fn digest(digest: &Digest) -> String {
    digest.short()
}

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M").to_string()
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
