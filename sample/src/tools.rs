//! Commands with known ends, for images that hold nothing but this program.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

/// Runs one of them; none is known by these arguments: `None`.
pub(crate) fn run(args: &[&str]) -> Option<ExitCode> {
    let result = match args {
        ["exit", code] => return code.parse::<u8>().ok().map(ExitCode::from),
        ["print", lines] => print(lines.parse().ok()?),
        ["cat"] => io::copy(&mut io::stdin(), &mut io::stdout()).map(drop),
        ["touch", path] => std::fs::write(path, ""),
        ["exists", path] => std::fs::metadata(path).map(drop),
        ["fetch", url] => fetch(url),
        ["terminal"] => return Some(terminal()),
        ["sleep"] => sleep(libc::SIG_DFL),
        ["ignore-term"] => sleep(libc::SIG_IGN),
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sample: {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    })
}

fn print(lines: u64) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for n in 1..=lines {
        writeln!(out, "line {n}")?;
    }
    out.flush()
}

/// Tells the size of its terminal, again whenever that changes, until `q` is typed.
fn terminal() -> ExitCode {
    let mut shown = None;
    loop {
        // SAFETY: all zeros are a value of this, and the kernel fills it in.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: it outlives the call.
        if unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) } < 0 {
            eprintln!("sample: standard input is no terminal");
            return ExitCode::FAILURE;
        }
        let size = Some((size.ws_row, size.ws_col));
        if let (true, Some((rows, columns))) = (shown != size, size) {
            println!("{rows} {columns}");
        }
        shown = size;
        let mut input = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which outlives the call.
        if unsafe { libc::poll(&raw mut input, 1, 50) } > 0 {
            let mut key = [0];
            match io::stdin().read(&mut key) {
                Ok(1) if key == *b"q" => return ExitCode::from(5),
                Ok(1) => {}
                _ => return ExitCode::SUCCESS,
            }
        }
    }
}

extern "C" fn end(_: libc::c_int) {
    // SAFETY: `_exit` may be called from a signal handler.
    unsafe { libc::_exit(0) }
}

fn sleep(on_term: libc::sighandler_t) -> io::Result<()> {
    let on_term =
        if on_term == libc::SIG_IGN { on_term } else { end as *const () as libc::sighandler_t };
    // SAFETY: the handler only calls `_exit`, or there is none.
    unsafe { libc::signal(libc::SIGTERM, on_term) };
    println!("sample: sleeping");
    loop {
        std::thread::park();
    }
}

/// Prints the answer to a GET of `http://ADDRESS[:PORT]/PATH`.
fn fetch(url: &str) -> io::Result<()> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    if answer.starts_with("HTTP/1.1 2") { Ok(()) } else { Err(io::Error::other("not a success")) }
}
