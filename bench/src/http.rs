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

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
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
    /// Sends the same request so many times at once, and reads all answers.
    pub(crate) fn send_many(&mut self, path: &str, times: usize) -> Result<()> {
        let one = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{}\r\n", self.headers);
        self.stream.get_mut().write_all(one.repeat(times).as_bytes())?;
        for _ in 0..times {
            let answer = self.receive()?;
            if answer.status != 200 {
                bail!("status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
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

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_ascii_lowercase())
    }

    fn receive(&mut self) -> Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).context("a status line")?.parse()?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                Some(("content-length", value)) => length = value.parse()?,
                Some(("transfer-encoding", "chunked")) => chunked = true,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = Vec::new();
        loop {
            let size = if chunked { usize::from_str_radix(&self.line()?, 16)? } else { length };
            let from = body.len();
            body.resize(from + size, 0);
            self.stream.read_exact(&mut body[from..])?;
            if !chunked {
                break;
            }
            self.line()?;
            if size == 0 {
                break;
            }
        }
        Ok(Answer { status, body })
    }
}
