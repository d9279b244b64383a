//! As little HTTP/1.1 as a measurement needs: its own cost must not show.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longer than anything here takes when it works.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that is kept.
pub(crate) struct Client<S: Read + Write> {
    stream: BufReader<S>,
    headers: String,
}

/// Requests that are sent several at once, and the room for their answers.
pub(crate) struct Many {
    requests: Vec<Vec<u8>>,
    next: usize,
    size: usize,
    answers: Vec<u8>,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// All of its bytes.
    size: usize,
    pub(crate) body: Vec<u8>,
}

impl Client<TcpStream> {
    pub(crate) fn tcp(to: SocketAddr, headers: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), headers: headers.to_owned() })
    }
}

impl Client<UnixStream> {
    pub(crate) fn unix(to: &Path) -> Result<Self> {
        let stream = UnixStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), headers: String::new() })
    }
}

impl<S: Read + Write> Client<S> {
    /// Reads with each of these headers in turn, so many sent at once. Their answers must all be of one
    /// length, which is found out by one of them.
    pub(crate) fn many(&mut self, path: &str, headers: &[String], times: usize) -> Result<Many> {
        let one = |headers: &String| format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{headers}\r\n");
        let first = headers.first().context("no headers")?;
        self.stream.get_mut().write_all(one(first).as_bytes())?;
        let answer = self.receive()?;
        if answer.status != 200 {
            bail!("status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        let size = answer.size;
        let mut requests: Vec<Vec<u8>> = headers
            .chunks_exact(times)
            .map(|some| some.iter().map(one).collect::<String>().into_bytes())
            .collect();
        if requests.is_empty() {
            requests.push(one(first).repeat(times).into_bytes());
        }
        Ok(Many { requests, next: 0, size, answers: vec![0; size * times] })
    }

    /// Sends the next of the requests.
    pub(crate) fn ask(&mut self, many: &mut Many) -> Result<()> {
        self.stream.get_mut().write_all(&many.requests[many.next])?;
        many.next = (many.next + 1) % many.requests.len();
        Ok(())
    }

    /// Reads their answers, and looks at no more of them than that they are good: what the generator
    /// spends is taken from the server that it measures.
    pub(crate) fn answers(&mut self, many: &mut Many) -> Result<()> {
        self.stream.read_exact(&mut many.answers)?;
        for answer in many.answers.chunks(many.size) {
            if !answer.starts_with(b"HTTP/1.1 200 ") {
                bail!("an answer is another: {}", String::from_utf8_lossy(answer));
            }
        }
        Ok(())
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: bench\r\n{}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.headers,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.receive()
    }

    fn line(&mut self, size: &mut usize) -> Result<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line)?;
        if read == 0 {
            bail!("the connection was closed");
        }
        *size += read;
        Ok(line.trim_end().to_ascii_lowercase())
    }

    fn receive(&mut self) -> Result<Answer> {
        let mut bytes = 0;
        let status = self.line(&mut bytes)?;
        let status = status.split(' ').nth(1).context("a status line")?.parse()?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line(&mut bytes)?;
            match line.split_once(": ") {
                Some(("content-length", value)) => length = value.parse()?,
                Some(("transfer-encoding", "chunked")) => chunked = true,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = Vec::new();
        loop {
            let size =
                if chunked { usize::from_str_radix(&self.line(&mut bytes)?, 16)? } else { length };
            let from = body.len();
            body.resize(from + size, 0);
            self.stream.read_exact(&mut body[from..])?;
            if !chunked {
                break;
            }
            self.line(&mut bytes)?;
            if size == 0 {
                break;
            }
        }
        Ok(Answer { status, size: bytes + body.len(), body })
    }
}
