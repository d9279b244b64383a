//! As much of HTTP as a probe needs: one request, and the status of the answer. What comes back is
//! the stack's, so no more of it is read than the status line may have.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

const MOST_BYTES: usize = 4096;

/// A request and its answer, under way.
#[derive(Debug)]
pub(super) struct Exchange {
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

impl Exchange {
    pub(super) fn new(host: &str, path: &str, headers: &[(String, String)]) -> Self {
        let clean = |text: &str| !text.bytes().any(|b| b.is_ascii_control());
        let path = if clean(path) && !path.contains(' ') { path } else { "/" };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut request = format!("GET {slash}{path} HTTP/1.1\r\n");
        let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
        for (name, value) in
            [("Host", host), ("User-Agent", "kube-probe/stackd"), ("Accept", "*/*")]
        {
            if !given(name) {
                request += &format!("{name}: {value}\r\n");
            }
        }
        for (name, value) in headers {
            if clean(name) && clean(value) {
                request += &format!("{name}: {value}\r\n");
            }
        }
        request += "Connection: close\r\n\r\n";
        Self { request: request.into_bytes(), sent: 0, answer: Vec::new() }
    }

    /// Sends and reads what can be; the status once it is known.
    pub(super) fn go_on(&mut self, socket: &OwnedFd) -> Result<Option<u16>, String> {
        let text = |e: Errno| std::io::Error::from(e).to_string();
        while self.sent < self.request.len() {
            match rustix::net::send(socket, &self.request[self.sent..], SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(text(e)),
            }
        }
        let mut buffer = [0; 1024];
        loop {
            match rustix::io::read(socket, &mut buffer) {
                Ok(0) => return Err("it closed the connection without an answer".to_owned()),
                Ok(n) => self.answer.extend_from_slice(&buffer[..n]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(text(e)),
            }
            if let Some(end) = self.answer.iter().position(|b| *b == b'\n') {
                return status(&self.answer[..end])
                    .map(Some)
                    .ok_or_else(|| "its answer is not HTTP".to_owned());
            }
            if self.answer.len() > MOST_BYTES {
                return Err("its answer is not HTTP".to_owned());
            }
        }
    }
}

fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.get(2..5)?.parse().ok().filter(|code| (100..600).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_line_has_a_status() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r"), Some(204));
        assert_eq!(status(b"HTTP/1.0 404"), Some(404));
        assert_eq!(status(b"HTTP/1.1 2000"), Some(200));
        for line in [&b"SSH-2.0-OpenSSH"[..], b"HTTP/1.1 ", b"HTTP/1.1 999", b"\xff\xfe"] {
            assert_eq!(status(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_header_cannot_bring_another_request() {
        let headers = [("X-A".to_owned(), "1\r\n\r\nGET /evil".to_owned())];
        let exchange = Exchange::new("10.0.0.1:80", "/ok", &headers);
        let text = String::from_utf8(exchange.request).unwrap();
        assert_eq!(text.matches("\r\n\r\n").count(), 1);
        assert!(!text.contains("evil"));
    }
}
