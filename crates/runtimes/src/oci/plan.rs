//! From a stack's description and its images to what a shim is told.

use std::path::Path;
use std::sync::Arc;

use stackd_core::RuntimeError;
use stackd_core::runtime::{EnsureRequest, ErrorKind};
use stackd_core::spec::VolumeMedium;
use stackd_core::stack::reason;
use stackd_shim::protocol::{ContainerPlan, Disk, VolumePlan};

use super::config::DiskKind;
use super::disks::{Template, Templates};
use super::images::{ImageLease, ImageStore, no_progress};
use super::process;

/// What a stack is made of, and what must be held while it runs.
pub(super) struct Plan {
    pub(super) containers: Vec<ContainerPlan>,
    pub(super) volumes: Vec<VolumePlan>,
    pub(super) disk: Disk,
    pub(super) hostname: String,
    pub(super) images: Vec<String>,
    pub(super) leases: Vec<ImageLease>,
    /// What its disks are copies of: to be held until they are made.
    pub(super) templates: Vec<Arc<Template>>,
}

/// Works out a stack's plan. Images are pulled only if they have gone since they were prepared.
pub(super) async fn plan(
    request: &EnsureRequest,
    images: &ImageStore,
    templates: &Templates,
    kind: DiskKind,
    data_dir: &Path,
) -> Result<Plan, RuntimeError> {
    let spec = &request.spec;
    let hostname = spec.hostname.clone().unwrap_or_else(|| request.id.to_string());
    let mut containers = Vec::new();
    let mut leases = Vec::new();
    let mut digests: Vec<String> = Vec::new();
    for (number, container) in spec.all_containers().enumerate() {
        let image = match images.lease(&container.image) {
            Ok(image) => image,
            Err(_) => {
                let policy = container.image_pull_policy;
                images.ensure(&container.image, policy, &no_progress).await?
            }
        };
        let process = process::resolve(image.config(), container, image.users(), &hostname)?;
        let layers = image.layer_paths().iter().map(|layer| {
            let below = layer.strip_prefix(data_dir).map(Path::to_path_buf);
            below.map_err(|_| {
                failed(format!("the layer {} is not below the data directory", layer.display()))
            })
        });
        containers.push(ContainerPlan {
            name: container.name.clone(),
            init: number < spec.init_containers.len(),
            layers: layers.collect::<Result<_, _>>()?,
            args: process.args,
            env: process.env,
            cwd: process.cwd,
            uid: process.uid,
            gid: process.gid,
            groups: process.groups,
            stop_signal: process.stop_signal,
            cpu_milli: container.resources.cpu_milli,
            memory_bytes: container.resources.memory_bytes,
            mounts: container.volume_mounts.clone(),
            readiness: container.readiness_probe.clone(),
            liveness: container.liveness_probe.clone(),
            startup: container.startup_probe.clone(),
            stdin: container.stdin,
            tty: container.tty,
        });
        let digest = image.digest().to_string();
        if !digests.contains(&digest) {
            digests.push(digest);
            leases.push(image);
        }
    }
    let mut volumes = Vec::new();
    let (disk, template) = disk_of(kind, request.disk_bytes, templates).await?;
    let mut held = Vec::from_iter(template);
    for volume in &spec.volumes {
        let template = match (volume.medium, volume.size_limit_bytes) {
            (VolumeMedium::Disk, Some(bytes)) => Some(templates.of(bytes).await?),
            _ => None,
        };
        let path = template.as_ref().map(|template| template.path().to_owned());
        volumes.push(VolumePlan { volume: volume.clone(), template: path });
        held.extend(template);
    }
    Ok(Plan { containers, volumes, disk, hostname, images: digests, leases, templates: held })
}

/// A disk of this size, and what it is a copy of, to be held until it is made.
pub(super) async fn disk_of(
    kind: DiskKind,
    bytes: u64,
    templates: &Templates,
) -> Result<(Disk, Option<Arc<Template>>), RuntimeError> {
    Ok(match kind {
        DiskKind::Loop => {
            let template = templates.of(bytes).await?;
            (Disk::Loop { template: template.path().to_owned() }, Some(template))
        }
        DiskKind::Memory => (Disk::Memory { bytes }, None),
    })
}

/// A failure of this machine, told to the operator.
pub(super) fn failed(operator: impl Into<String>) -> RuntimeError {
    let condition = stackd_core::stack::Condition::new(
        reason::START_ERROR,
        "the machine could not start the containers",
    );
    RuntimeError::new(ErrorKind::Failed, condition, operator)
}
