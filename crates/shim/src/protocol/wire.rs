//! Frames: four bytes of length, little endian, then JSON. Descriptors travel with the first bytes
//! of the frame they belong to.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes of a frame.
pub const MAX_FRAME_BYTES: usize = 8 << 20;
/// The most descriptors that come with one frame.
pub const MAX_DESCRIPTORS: usize = 64;

/// Makes a frame of a message.
pub fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Sends the first bytes of a frame with its descriptors; says how many bytes went.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Sends a whole message on a blocking socket.
pub fn send_all<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = frame(message)?;
    let mut sent = 0;
    while sent < bytes.len() {
        let with = if sent == 0 { fds } else { &[] };
        match send(socket, &bytes[sent..], with) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Collects what comes from a socket until it makes whole messages.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Some bytes.
    Some,
    /// The peer will send no more.
    End,
}

impl Inbox {
    /// Reads once. `WouldBlock` is an error here as everywhere.
    pub fn read(&mut self, socket: BorrowedFd<'_>) -> io::Result<Read> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 16384];
        let got = loop {
            let io = &mut [IoSliceMut::new(&mut buffer)];
            match recvmsg(socket, io, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if got.bytes == 0 {
            return Ok(Read::End);
        }
        self.bytes.extend_from_slice(&buffer[..got.bytes]);
        Ok(Read::Some)
    }

    /// The next whole message, if it has come.
    pub fn message<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too large"));
        }
        let Some(body) = self.bytes.get(4..4 + length) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }

    /// The oldest descriptors that have come and were not yet taken, so many or as many as there
    /// are. A message says how many come with it.
    pub fn take_fds(&mut self, most: usize) -> Vec<OwnedFd> {
        self.fds.drain(..most.min(self.fds.len())).collect()
    }

    /// Waits for the next whole message on a blocking socket; `None` at its end.
    pub fn receive<T: DeserializeOwned>(&mut self, socket: impl AsFd) -> io::Result<Option<T>> {
        loop {
            if let Some(message) = self.message()? {
                return Ok(Some(message));
            }
            if self.read(socket.as_fd())? == Read::End {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_message_and_its_descriptors_arrive_together_and_in_order() {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send_all(a.as_fd(), &"one", &[write.as_fd()]).unwrap();
        send_all(a.as_fd(), &"x".repeat(50_000), &[]).unwrap();
        drop((a, write));
        let mut inbox = Inbox::default();
        assert_eq!(inbox.receive::<String>(&b).unwrap().as_deref(), Some("one"));
        let fds = inbox.take_fds(8);
        assert_eq!(fds.len(), 1);
        rustix::io::write(&fds[0], b"!").unwrap();
        assert_eq!(rustix::io::read(&read, &mut [0; 8][..]).unwrap(), 1);
        assert_eq!(inbox.receive::<String>(&b).unwrap().map(|s| s.len()), Some(50_000));
        assert_eq!(inbox.receive::<String>(&b).unwrap(), None);
    }

    #[test]
    fn a_frame_of_absurd_length_is_an_error() {
        let mut inbox = Inbox { bytes: vec![0xff; 8], fds: VecDeque::new() };
        assert!(inbox.message::<String>().is_err());
    }
}
