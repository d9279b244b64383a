//! The image of a server, made by an engine as its users make it.

use bollard::query_parameters::BuildImageOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;

use crate::sample::{entry, finish};

const CONTAINERFILE: &[u8] = include_bytes!("../../../../deploy/Containerfile");

/// Has an engine make an image of `deploy/Containerfile` and this program. It begins with nothing, so
/// that no registry is asked.
pub async fn build_server(docker: &Docker, program: &[u8], name: &str) {
    let mut context = tar::Builder::new(Vec::new());
    entry(&mut context, "Containerfile", 0o644, CONTAINERFILE);
    // As cargo leaves it.
    entry(&mut context, "stackd", 0o755, program);
    let context = bollard::body_full(finish(context).into());
    let options = BuildImageOptionsBuilder::default().dockerfile("Containerfile").t(name).build();
    let mut steps = docker.build_image(options, None, Some(context));
    while let Some(step) = steps.next().await {
        step.expect("the image is built");
    }
}

/// The same by the engine that tests share, as `docker save` writes it.
pub fn server_archive(program: &[u8], name: &str) -> Vec<u8> {
    let host = super::shared();
    let make = || {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
        executor.expect("an executor").block_on(async {
            let path = host.trim_start_matches("unix://");
            let docker = Docker::connect_with_unix(path, 60, API_DEFAULT_VERSION);
            let docker = docker.expect("a client").negotiate_version().await.expect("a version");
            build_server(&docker, program, name).await;
            let mut archive = Vec::new();
            let mut parts = docker.export_image(name);
            while let Some(part) = parts.next().await {
                archive.extend_from_slice(&part.expect("a part of the image"));
            }
            archive
        })
    };
    // A thread of its own: the caller may be inside of an executor.
    std::thread::scope(|scope| scope.spawn(make).join()).expect("an image")
}
