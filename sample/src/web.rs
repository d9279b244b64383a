//! The servers: HTTP by a few threads, datagrams by one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::{facts, page};

/// Connections that are served at once; more wait their turn.
const THREADS: usize = 4;
/// The most bytes of a request's head, and of a body that is read before the answer.
const MOST_BYTES: u64 = 64 << 10;
const STACK_BYTES: usize = 128 << 10;

extern "C" fn end(_: libc::c_int) {
    // SAFETY: `_exit` may be called from a signal handler.
    unsafe { libc::_exit(0) }
}

/// Serves until SIGTERM. As the first process of a stack it must ask for that signal.
pub(crate) fn serve(options: &[&str]) -> ExitCode {
    // SAFETY: the handler only calls `_exit`.
    unsafe { libc::signal(libc::SIGTERM, end as *const () as libc::sighandler_t) };
    let mut port = std::env::var("PORT").ok();
    let mut udp = None;
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let value = rest.next().map(|value| (*value).to_owned());
        match (*option, value) {
            ("--port", Some(value)) => port = Some(value),
            ("--udp", Some(value)) => udp = Some(value),
            _ => {
                eprintln!("sample: {option} is not an option with a value; try --help");
                return ExitCode::from(2);
            }
        }
    }
    match start(port.as_deref().unwrap_or("80"), udp.as_deref()) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("sample: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> io::Result<u16> {
    text.parse().map_err(|_| io::Error::other(format!("{text:?} is not a port")))
}

fn start(port: &str, udp: Option<&str>) -> io::Result<std::convert::Infallible> {
    if let Some(udp) = udp {
        let socket = UdpSocket::bind(("0.0.0.0", number(udp)?))?;
        println!("sample: echoing datagrams on {}", socket.local_addr()?);
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || echo(&socket))?;
    }
    let listener = Arc::new(TcpListener::bind(("0.0.0.0", number(port)?))?);
    println!("sample: listening on {}", listener.local_addr()?);
    for _ in 1..THREADS {
        let listener = Arc::clone(&listener);
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || accept(&listener))?;
    }
    accept(&listener)
}

fn echo(socket: &UdpSocket) {
    let mut data = [0; 65_535];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut data) {
            let _ = socket.send_to(&data[..length], from);
        }
    }
}

fn accept(listener: &TcpListener) -> ! {
    loop {
        // A connection that breaks is its client's matter.
        if let Ok((stream, _)) = listener.accept() {
            let _ = answer(stream);
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let peer = stream.peer_addr()?.to_string();
    let mut reader = BufReader::new((&stream).take(MOST_BYTES));
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        // A probe that only connects.
        return Ok(());
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 {
            break;
        }
        match header.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let (status, kind, body) = match target.split('?').next() {
        Some("/") => {
            ("200 OK", "text/html; charset=utf-8", page::render(&facts::gather(), &peer, &headers))
        }
        Some("/json") => ("200 OK", "application/json", facts::gather().json(&headers) + "\n"),
        Some("/healthz") => ("200 OK", "text/plain", "ok\n".to_owned()),
        _ => ("404 Not Found", "text/plain", "there is /, /json and /healthz\n".to_owned()),
    };
    println!("{peer} {method} {target} {}", &status[..3]);
    let body_shown = if method == "HEAD" { "" } else { body.as_str() };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body_shown}",
        body.len()
    )
}
