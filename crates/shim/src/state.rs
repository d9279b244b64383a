//! What is left of a shim when it has ended: its last snapshot, in its stack's directory.

use std::path::{Path, PathBuf};

use crate::fault::{At, Fault};
use crate::protocol::{STATE_FILE, Snapshot};

/// Writes a snapshot whole or not at all. It need not survive the machine: after a reboot the
/// name of the boot in it tells that it is old.
pub(crate) fn write(directory: &Path, snapshot: &Snapshot) -> Result<(), Fault> {
    let (new, path) = (directory.join("state.new"), directory.join(STATE_FILE));
    let text = serde_json::to_vec(snapshot).map_err(std::io::Error::from);
    text.and_then(|text| std::fs::write(&new, text))
        .and_then(|()| std::fs::rename(&new, path))
        .at("write the state")
}

/// Reads what a shim has written in a stack's directory.
pub fn read(directory: &Path) -> std::io::Result<Snapshot> {
    let path: PathBuf = directory.join(STATE_FILE);
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}
