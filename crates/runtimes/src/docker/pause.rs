//! The image of the container that holds the network of a stack with several: a program that only
//! waits, and open directories for volumes. It is made here and given to the engine when it is
//! missing there; no registry is needed.

use bollard::Docker;
use bollard::query_parameters::ImportImageOptions;
use futures_util::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use stackd_core::RuntimeError;

use super::engine::{failed, fault, is_absent};

/// Its name in the engine.
pub(super) const IMAGE: &str = "stackd-pause:1";
/// The label that says that it is ours.
const LABEL: &str = "io.stackd.pause";
/// What its container may use: the engine itself starts in it.
pub(super) const MEMORY_BYTES: i64 = 16 << 20;
/// How many volumes a stack's network holder can open.
const VOLUMES: usize = 64;

/// Where the network holder has a stack's nth volume.
pub(super) fn volume_path(n: usize) -> String {
    format!("/volumes/{}", n % VOLUMES)
}

/// Makes sure that the engine has the image.
pub(super) async fn ensure(docker: &Docker) -> Result<(), RuntimeError> {
    match docker.inspect_image(IMAGE).await {
        Ok(there) => {
            let labels = there.config.and_then(|config| config.labels).unwrap_or_default();
            return match labels.contains_key(LABEL) {
                true => Ok(()),
                false => Err(failed(format!("the engine has an image {IMAGE:?} that is not ours"))),
            };
        }
        Err(e) if is_absent(&e) => {}
        Err(e) => return Err(fault("look for the pause image", &e)),
    }
    let info = docker.info().await.map_err(|e| fault("ask for the engine's architecture", &e))?;
    let architecture = info.architecture.unwrap_or_default();
    let archive = archive(&architecture)
        .ok_or_else(|| failed(format!("there is no pause image for {architecture}")))?
        .map_err(|e| failed(format!("make the pause image: {e}")))?;
    let body = bollard::body_full(archive.into());
    let mut answers = docker.import_image(ImportImageOptions::default(), body, None);
    while let Some(answer) = answers.next().await {
        answer.map_err(|e| fault("load the pause image", &e))?;
    }
    Ok(())
}

/// What `docker save` would write for it.
fn archive(architecture: &str) -> Option<std::io::Result<Vec<u8>>> {
    let (machine, name, code) = program(architecture)?;
    Some((|| {
        let layer = layer(&executable(machine, code))?;
        let config = json!({
            "architecture": name,
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "Labels": {LABEL: "1"}},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
            "history": [],
        })
        .to_string();
        let config_name = format!("{}.json", digest(config.as_bytes()));
        let manifest =
            json!([{"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
        let mut archive = tar::Builder::new(Vec::new());
        add(&mut archive, "layer.tar", 0o644, &layer)?;
        add(&mut archive, &config_name, 0o644, config.as_bytes())?;
        add(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
        archive.into_inner()
    })())
}

fn digest(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

fn layer(program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "pause", 0o755, program)?;
    add(&mut archive, "volumes/", 0o755, &[])?;
    for n in 0..VOLUMES {
        add(&mut archive, &format!("volumes/{n}/"), 0o777, &[])?;
    }
    archive.into_inner()
}

fn add(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    data: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    if path.ends_with('/') {
        header.set_entry_type(tar::EntryType::Directory);
    }
    archive.append_data(&mut header, path, data)
}

/// The number of a machine in an executable, its name in an image, and its instructions for: wait
/// for a signal, for ever.
fn program(architecture: &str) -> Option<(u16, &'static str, &'static [u8])> {
    match architecture {
        // mov eax, SYS_pause; syscall; jmp to the beginning
        "x86_64" | "amd64" => Some((62, "amd64", &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7])),
        // mov x0..x4, 0; mov x8, SYS_ppoll; svc 0; b to the beginning
        "aarch64" | "arm64" => Some((
            183,
            "arm64",
            &[
                0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00,
                0x80, 0xd2, 0x04, 0x00, 0x80, 0xd2, 0x28, 0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4,
                0xf9, 0xff, 0xff, 0x17,
            ],
        )),
        _ => None,
    }
}

/// The smallest executable around these instructions: a header, one segment, the code.
fn executable(machine: u16, code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2, machine] {
        out.extend(half.to_le_bytes());
    }
    out.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        out.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    out.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    out.extend(1u32.to_le_bytes()); // a segment to load,
    out.extend(5u32.to_le_bytes()); // to read and to run
    for word in [0, BASE, BASE, size, size, 0x1000] {
        out.extend(word.to_le_bytes());
    }
    out.extend(code);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_waits_until_it_is_killed() {
        let (machine, _, code) = program(std::env::consts::ARCH).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pause");
        std::fs::write(&path, executable(machine, code)).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        // It is in its call, and not running in a circle.
        let waits = (0..5000).any(|_| {
            let text = std::fs::read_to_string(format!("/proc/{}/syscall", child.id()));
            std::thread::yield_now();
            text.is_ok_and(|text| text.starts_with("34 ") || text.starts_with("73 "))
        });
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        child.kill().unwrap();
        let status = child.wait().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(9));
        assert!(waits);
    }

    #[test]
    fn every_known_machine_has_an_image() {
        for name in ["x86_64", "amd64", "aarch64", "arm64"] {
            assert!(archive(name).unwrap().unwrap().len() > 1000);
        }
        assert!(archive("riscv64").is_none());
    }
}
