//! Tells systemd how far the service is (`sd_notify`): one datagram to the socket it names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where the service manager listens, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Notify(Option<String>);

impl Notify {
    /// From the value of `NOTIFY_SOCKET`.
    pub(crate) fn new(socket: Option<&str>) -> Self {
        Self(socket.map(str::to_owned))
    }

    /// The server answers.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// It ends.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping; stacks go on");
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = send(socket, message) {
            tracing::warn!(%error, socket, "the service manager cannot be told");
        }
    }
}

fn send(socket: &str, message: &str) -> std::io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket.as_bytes()))?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_reads_each_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::new(path.to_str());
        notify.ready("listening");
        notify.stopping();
        let mut buffer = [0u8; 200];
        let mut next = || {
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(next(), "READY=1\nSTATUS=listening");
        assert!(next().starts_with("STOPPING=1\n"));
        Notify::new(None).ready("nobody listens");
    }
}
