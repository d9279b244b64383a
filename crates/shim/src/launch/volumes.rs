//! A stack's volumes, made before its containers and shared by them.

use std::collections::HashMap;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use stackd_core::spec::VolumeMedium;
use std::os::fd::AsFd;

use super::cell::{attach, place};
use super::disk;
use super::rootfs::own;
use crate::fault::{At, Fault};
use crate::protocol::{Disk, VolumePlan};

/// Makes every volume, open to every user inside, and says where each is in the private view.
pub(crate) fn make(
    volumes: &[VolumePlan],
    root_id: u32,
    memory_bytes: u64,
) -> Result<HashMap<String, String>, Fault> {
    let mut places = HashMap::with_capacity(volumes.len());
    for plan in volumes {
        let name = &plan.volume.name;
        let path = match (plan.volume.medium, &plan.template) {
            (VolumeMedium::Memory, _) => {
                let bytes = plan.volume.size_limit_bytes.unwrap_or(memory_bytes).min(memory_bytes);
                let owner = Some((root_id, root_id));
                let mount = disk::tmpfs(bytes, owner, "0777", MountAttrFlags::empty())?;
                let path = format!("{}/{name}", place::VOLUMES);
                directory(&path)?;
                attach(&mount, &path)?;
                path
            }
            (VolumeMedium::Disk, None) => {
                let path = format!("{}/volume-{name}", place::DISK);
                directory(&path)?;
                open_to_all(&path, root_id)?;
                path
            }
            // On the stack's own disk, so that both limits hold.
            (VolumeMedium::Disk, Some(template)) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let open = |path| rustix::fs::openat(CWD, path, flags, Mode::empty());
                let data = open(place::DATA).at("open the data directory")?;
                let on = open(place::DISK).at("open the disk")?;
                let mount = disk::mount(
                    data.as_fd(),
                    on.as_fd(),
                    &Disk::Loop { template: template.clone() },
                )?;
                let base = format!("{}/{name}", place::VOLUMES);
                directory(&base)?;
                attach(&mount, &base)?;
                let path = format!("{base}/content");
                directory(&path)?;
                open_to_all(&path, root_id)?;
                path
            }
        };
        places.insert(name.clone(), path);
    }
    Ok(places)
}

/// Where a volume is mounted that is a file system of its own, with a size of its own.
pub(crate) fn own_mount(plan: &VolumePlan) -> Option<String> {
    let own = plan.volume.medium == VolumeMedium::Memory || plan.template.is_some();
    own.then(|| format!("{}/{}", place::VOLUMES, plan.volume.name))
}

fn directory(path: &str) -> Result<(), Fault> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).at_with(|| format!("make {path}"))
}

fn open_to_all(path: &str, root_id: u32) -> Result<(), Fault> {
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o777), AtFlags::empty())
        .and_then(|()| own(CWD, path, root_id))
        .at_with(|| format!("open {path} to the stack"))
}
