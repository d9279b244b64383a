//! The sample's archives are what their formats say.

use std::collections::HashMap;
use std::io::Read;

use stackd_testkit::sample;

fn files(archive: &[u8]) -> HashMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").to_string_lossy().into_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).expect("its data");
        (path, data)
    };
    archive.entries().expect("entries").map(read).collect()
}

fn json(data: &[u8]) -> serde_json::Value {
    serde_json::from_slice(data).expect("JSON")
}

#[test]
fn every_name_leads_to_the_program() {
    let saved = files(&sample::docker_archive(&["nginx:stable"]));
    let manifest = json(&saved["manifest.json"]);
    assert_eq!(manifest[0]["RepoTags"][0], "nginx:stable");
    let layer = &saved[manifest[0]["Layers"][0].as_str().expect("a layer")];
    let config = json(&saved[manifest[0]["Config"].as_str().expect("a config")]);
    assert_eq!(config["config"]["Entrypoint"][0], sample::PROGRAM);
    assert_eq!(&files(layer)["sample"][..4], b"\x7fELF");

    let layout = files(&sample::oci_archive("sample:1"));
    let index = json(&layout["index.json"]);
    let at = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        layout[&digest.replace("sha256:", "blobs/sha256/")].clone()
    };
    let manifest = json(&at(&index["manifests"][0]));
    assert_eq!(json(&at(&manifest["config"])), config, "one image in two formats");
}
