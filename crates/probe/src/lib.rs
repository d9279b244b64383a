//! A hostile tenant. Each probe tries one thing that a stack must not be able to do, and prints
//! what became of it: a word, and what was tried.
//!
//! `denied` means that nothing happened; `contained`, that it hit a limit of its own; `allowed`,
//! that isolation has a hole (and the exit code is 1). A trailing argument `hold` keeps what was
//! taken until the program is ended, so that a neighbour can be looked at meanwhile.
//!
//! The program runs inside a stack, so it needs nothing but the kernel. Who runs it from outside
//! finds what to expect in [`cases`]: `stackd doctor --probe`, and the tests of every runtime.

mod exhaust;
pub mod facts;
mod reach;
mod table;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::ExitCode;

pub use table::{Case, Fills, Places, Platform, Said, Verdict, cases};

/// The port that `serve` answers on.
pub const PORT: u16 = 80;
/// What it answers.
pub const ANSWER: &str = "a neighbour";

/// What became of an attempt.
enum Outcome {
    /// Refused.
    Denied(String),
    /// It went as far as a limit of the stack's own.
    Contained(String),
    /// It worked.
    Allowed(String),
}

/// Allowed if any of the attempts worked, and which.
fn any(attempts: impl IntoIterator<Item = (String, Result<(), std::io::Error>)>) -> Outcome {
    let (mut worked, mut refused) = (Vec::new(), Vec::new());
    for (what, result) in attempts {
        match result {
            Ok(()) => worked.push(what),
            Err(error) => refused.push(format!("{what}: {error}")),
        }
    }
    if worked.is_empty() {
        Outcome::Denied(refused.join("; "))
    } else {
        Outcome::Allowed(worked.join("; "))
    }
}

/// What the last system call said.
fn outcome_of(what: &str, result: libc::c_long) -> (String, Result<(), std::io::Error>) {
    let result = if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    (what.to_owned(), result)
}

/// What a program does that was started with these words inside a stack.
pub fn main(words: &[&str]) -> ExitCode {
    match words {
        ["serve"] => serve(),
        ["around"] => {
            println!("{}", facts::Around::look().written());
            ExitCode::SUCCESS
        }
        [name, arguments @ ..] => run(name, arguments),
        [] => ExitCode::from(2),
    }
}

/// A neighbour that can be seen to go on working.
fn serve() -> ExitCode {
    let served = TcpListener::bind(("0.0.0.0", PORT)).and_then(|listener| {
        for stream in listener.incoming() {
            let mut stream = stream?;
            // Nobody is waited for long.
            stream.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
            let _ = stream.write_all(ANSWER.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 64]);
        }
        Ok(())
    });
    if let Err(error) = served {
        eprintln!("probe: {error}");
    }
    ExitCode::FAILURE
}

/// Tries one thing and tells.
pub fn run(name: &str, arguments: &[&str]) -> ExitCode {
    let (arguments, hold) = match arguments {
        [arguments @ .., "hold"] => (arguments, true),
        _ => (arguments, false),
    };
    let first = arguments.first().copied();
    let outcome = match (name, first) {
        ("connect", Some(_)) => reach::connect(arguments),
        ("udp", Some(address)) => reach::udp(address),
        ("read", Some(path)) => reach::read(path),
        ("write", Some(path)) => reach::write(path, arguments.get(1).unwrap_or(&"1")),
        ("processes", None) => reach::processes(),
        ("devices", None) => reach::devices(),
        ("kernel-knobs", None) => reach::kernel_knobs(),
        ("masked", None) => reach::masked(false),
        ("masked", Some("names")) => reach::masked(true),
        ("cgroup", None) => reach::cgroup(),
        ("mount", None) => reach::mount(),
        ("unshare", None) => reach::unshare(),
        ("raw-socket", None) => reach::raw_socket(),
        ("mknod", None) => reach::mknod(),
        ("keyctl", None) => reach::keyctl(),
        ("system-calls", None) => reach::system_calls(),
        ("capabilities", None) => reach::capabilities(),
        ("set-user-id", None) => reach::set_user_id(),
        ("memory-hog", None) => exhaust::memory(),
        ("fork-bomb", None) => exhaust::processes(),
        ("inotify", None) => exhaust::inotify(hold),
        ("pipes", None) => exhaust::pipes(hold),
        ("aio", None) => exhaust::aio(),
        ("disk-filler", _) => {
            let bound = arguments.get(1).and_then(|mib| mib.parse().ok());
            exhaust::disk(first.unwrap_or("/tmp"), bound, hold)
        }
        ("inode-filler", _) => exhaust::inodes(first.unwrap_or("/tmp"), hold),
        _ => {
            eprintln!("there is no probe {name:?} with {} arguments", arguments.len());
            return ExitCode::from(2);
        }
    };
    let (verdict, detail) = match outcome {
        Outcome::Denied(detail) => (Verdict::Denied, detail),
        Outcome::Contained(detail) => (Verdict::Contained, detail),
        Outcome::Allowed(detail) => (Verdict::Allowed, detail),
    };
    // What was read somewhere may have lines of its own.
    println!("{} {}", verdict.as_str(), detail.replace(['\n', '\r'], " "));
    let _ = std::io::stdout().flush();
    if hold {
        loop {
            std::thread::park();
        }
    }
    ExitCode::from(u8::from(verdict == Verdict::Allowed))
}
