//! An embedded runtime of its own beside whatever runs on this machine: another directory, other
//! control groups, other user ids. Nothing is left of it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use stackd_core::Runtime;
use stackd_runtimes::docker::{DockerRuntime, EngineImport};
use stackd_runtimes::kubernetes::{KubernetesConfig, KubernetesRuntime};
use stackd_runtimes::oci::images::{ImageConfig, ImageStore, ImportOptions};
use stackd_runtimes::oci::{OciConfig, OciRuntime};

use super::{DISK_BYTES, On, PROGRAM, Subject, prove};
use crate::config::Config;
use crate::doctor::Check;
use crate::doctor::settings::nearest;
use crate::local::data_dir::DataDir;

const IMAGE: &str = "stackd-probe:own";

/// A directory that goes with this.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a directory cannot be removed");
        }
    }
}

pub(super) async fn oci(config: &Config) -> anyhow::Result<Vec<Check>> {
    let name = format!("stackd-probe-{}", std::process::id());
    // On the file system that stacks are kept on.
    let directory = Directory(nearest(&config.data_dir).join(&name));
    let data = DataDir::make(&directory.0)?;
    let settings = &config.runtime.oci;
    let bind = settings.node_port_bind;
    let oci = OciConfig {
        data_dir: data.path().to_owned(),
        default_disk_bytes: DISK_BYTES,
        cgroup_parent: name,
        // No more than is asked for.
        ready_stacks: 0,
        ..settings.clone()
    };
    crate::client::use_ring();
    let (images, made) = (data.images(), data.path().join("image"));
    let images = tokio::task::spawn_blocking(move || {
        make_image(&made)?;
        Ok::<_, anyhow::Error>((ImageStore::open(&images, ImageConfig::default())?, made))
    });
    let (images, made) = images.await.context("the image")??;
    let options = ImportOptions { name: IMAGE.to_owned(), ..ImportOptions::default() };
    images.import(&made, options).await.context("the image")?;
    let runtime = OciRuntime::open(oci, images).await.context("the oci runtime")?;
    let address = if bind.is_unspecified() { "127.0.0.1".to_owned() } else { bind.to_string() };
    let subject = Subject {
        runtime: &runtime,
        image: IMAGE,
        address: &address,
        node_ports: config.engine.node_ports.clone(),
        on: machine(config),
    };
    let proved = prove(&subject).await;
    runtime.remove_all().await;
    proved
}

/// Stacks in the namespace that is configured, beside those of the server and under another name.
pub(super) async fn kubernetes(config: &Config) -> anyhow::Result<Vec<Check>> {
    let settings = crate::serve::kubernetes(config);
    let image = settings
        .probe_image
        .clone()
        .context("the cluster needs an image of this program: name it with --probe-image")?;
    let settings = KubernetesConfig {
        installation: format!("{}-probe-{}", settings.installation, std::process::id()),
        ..settings
    };
    crate::client::use_ring();
    let runtime = KubernetesRuntime::open(settings).await?;
    let address = runtime.node_address().await.context("no node has an address to dial")?;
    let address = address.to_string();
    let subject = Subject {
        runtime: &runtime,
        image: &image,
        address: &address,
        node_ports: config.engine.node_ports.clone(),
        on: On::Cluster,
    };
    prove(&subject).await
}

/// Stacks on the engine that is configured, of a directory of their own.
pub(super) async fn docker(config: &Config) -> anyhow::Result<Vec<Check>> {
    let name = format!("stackd-probe-{}", std::process::id());
    let directory = Directory(nearest(&config.data_dir).join(&name));
    let data = DataDir::make(&directory.0)?;
    let mut docker = crate::serve::docker_config(config, data.path());
    // What it looks at now and then is to be seen while it is tried.
    docker.disk_look = std::time::Duration::from_secs(1);
    // No more than is asked for.
    docker.ready_networks = 0;
    if !docker.is_here() {
        // Whatever it is called to others, from here it is reached where the engine is.
        docker.machine.public_ip = None;
    }
    crate::client::use_ring();
    let runtime = DockerRuntime::open(docker.clone()).await.context("the docker runtime")?;
    let images = runtime.images();
    let image = format!("stackd-probe:{}", std::process::id());
    let made = data.path().join("image");
    let import = async {
        let root = made.clone();
        tokio::task::spawn_blocking(move || make_image(&root)).await??;
        let import = EngineImport { name: image.clone(), changes: Vec::new() };
        images.import(crate::local::image::packed(made), import).await?;
        Ok::<_, anyhow::Error>(())
    };
    import.await.context("the image")?;
    let settings = &config.runtime.oci;
    let bind = settings.node_port_bind;
    let own = if bind.is_unspecified() { "127.0.0.1".to_owned() } else { bind.to_string() };
    let address = match docker.is_here() {
        true => own,
        false => runtime.placement().and_then(|place| place.public_ip).unwrap_or(own),
    };
    let gateway_of = |id| runtime.gateway_of(id).map(|gateway| gateway.to_string());
    let api =
        docker.host.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse().ok());
    let on = match api {
        Some(api) if !docker.is_here() => On::Elsewhere {
            host: address.clone(),
            api,
            gateway_of: &gateway_of,
            data_dir: config.data_dir.display().to_string(),
        },
        _ => machine(config),
    };
    let subject = Subject {
        runtime: &runtime,
        image: &image,
        address: &address,
        node_ports: config.engine.node_ports.clone(),
        on,
    };
    let proved = prove(&subject).await;
    runtime.remove_all().await;
    if let Err(error) = images.remove(&image, true).await {
        tracing::warn!(image, error = error.operator, "an image stays in the engine");
    }
    proved
}

/// This machine.
fn machine(config: &Config) -> On<'static> {
    On::Machine {
        gateway: config.runtime.oci.gateway_address.to_string(),
        data_dir: config.data_dir.display().to_string(),
    }
}

/// A root file system of this program and a place to write to.
fn make_image(root: &Path) -> anyhow::Result<()> {
    let tmp = root.join("tmp");
    std::fs::create_dir_all(&tmp)?;
    std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o1777))?;
    std::fs::copy("/proc/self/exe", root.join(PROGRAM.trim_start_matches('/')))
        .context("copy this program")?;
    Ok(())
}
