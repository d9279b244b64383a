//! The sample challenge as an image, made from the repository: no registry is needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

// The other image that tests need.
pub use crate::docker::server_archive;

/// Where the program is inside the image; it is the image's entrypoint too.
pub const PROGRAM: &str = "/sample";
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// The sample's program, built once by the cargo that builds the tests.
pub fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build_program("stackd-sample", "stackd-sample"))
}

/// Builds a program of this workspace, in the profile of the running test, and tells where it is.
pub fn build_program(package: &str, name: &str) -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--message-format=json", "-p", package, "--bin", name]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let own = std::env::current_exe().expect("the test's own path");
    if own.components().any(|part| part.as_os_str() == "release") {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo build -p {package} failed: {errors}");
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    };
    messages.lines().rev().find_map(executable).expect("cargo tells where the program is")
}

pub(crate) fn entry(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    if path.ends_with('/') {
        header.set_entry_type(tar::EntryType::Directory);
    }
    archive.append_data(&mut header, path, data).expect("writing to memory");
}

pub(crate) fn finish(archive: tar::Builder<Vec<u8>>) -> Vec<u8> {
    archive.into_inner().expect("writing to memory")
}

/// The root file system as a tarball, for `stackd image import`.
pub fn rootfs() -> Vec<u8> {
    let program = std::fs::read(binary()).expect("the program is there");
    let mut archive = tar::Builder::new(Vec::new());
    entry(&mut archive, "sample", 0o755, &program);
    entry(&mut archive, "tmp/", 0o1777, b"");
    entry(&mut archive, "etc/", 0o755, b"");
    let users = b"root:x:0:0:root:/root:/sample\nweb:x:1000:1000:web:/tmp:/sample\n";
    entry(&mut archive, "etc/passwd", 0o644, users);
    entry(&mut archive, "etc/group", 0o644, b"root:x:0:\nweb:x:1000:\n");
    finish(archive)
}

fn hex_digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A further layer of one file with this many bytes.
pub fn large_layer(bytes: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    // Not all the same, so that no two blocks are.
    let data: Vec<_> = (0..bytes as u64 / 8).flat_map(u64::to_le_bytes).collect();
    entry(&mut archive, "large", 0o644, &data);
    finish(archive)
}

/// The image configuration over this layer.
pub fn config(layer: &[u8]) -> Vec<u8> {
    config_over(&[layer])
}

/// The image configuration over these layers.
pub fn config_over(layers: &[&[u8]]) -> Vec<u8> {
    let digests: Vec<_> =
        layers.iter().map(|layer| format!("sha256:{}", hex_digest(layer))).collect();
    let config = json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {
            "Entrypoint": [PROGRAM],
            "Cmd": ["serve"],
            "Env": ["PATH=/", "SAMPLE=yes"],
            "ExposedPorts": {"80/tcp": {}},
            "WorkingDir": "/tmp",
        },
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": [],
    });
    config.to_string().into_bytes()
}

/// What `docker save` would write for the sample under these names, for `stackd image load`.
pub fn docker_archive(names: &[&str]) -> Vec<u8> {
    let layer = rootfs();
    docker_archive_of(&layer, &config(&layer), names)
}

/// The same of an image that names nothing to run.
pub fn docker_archive_without_command(name: &str) -> Vec<u8> {
    let layer = rootfs();
    let mut config: Value = serde_json::from_slice(&config(&layer)).expect("made here");
    for what in ["Entrypoint", "Cmd"] {
        config["config"].as_object_mut().expect("made here").remove(what);
    }
    docker_archive_of(&layer, config.to_string().as_bytes(), &[name])
}

fn docker_archive_of(layer: &[u8], config: &[u8], names: &[&str]) -> Vec<u8> {
    let (layer_name, config_name) = ("layer.tar", format!("{}.json", hex_digest(config)));
    let manifest = json!([{"Config": config_name, "RepoTags": names, "Layers": [layer_name]}]);
    let mut archive = tar::Builder::new(Vec::new());
    entry(&mut archive, layer_name, 0o644, layer);
    entry(&mut archive, &config_name, 0o644, config);
    entry(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes());
    finish(archive)
}

/// The sample as an OCI image layout in a tarball.
pub fn oci_archive(name: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut blob = |kind: &str, data: &[u8]| {
        let digest = hex_digest(data);
        entry(&mut archive, &format!("blobs/sha256/{digest}"), 0o644, data);
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": data.len(),
        })
    };
    let layer = rootfs();
    let config = blob("config.v1+json", &config(&layer));
    let layer = blob("layer.v1.tar", &layer);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    entry(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    entry(&mut archive, "index.json", 0o644, index.to_string().as_bytes());
    finish(archive)
}
