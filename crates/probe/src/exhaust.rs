//! Attempts to take everything. Each stops at a bound, so that a hole hurts nobody for long.

use std::fs::{self, File};
use std::io::Write;

use super::Outcome;

/// Takes memory until it is killed: it never gets to answer where memory is limited.
pub(super) fn memory() -> Outcome {
    const BOUND_MIB: usize = 8 << 10;
    let mut held = Vec::new();
    for n in 1..=BOUND_MIB {
        // Not zeros, so that every page is really taken.
        held.push(vec![n as u8 | 1; 1 << 20]);
    }
    Outcome::Allowed(format!("{} MiB", held.len()))
}

/// Starts processes until no more may be started.
pub(super) fn processes() -> Outcome {
    const BOUND: usize = 20_000;
    let mut children = Vec::new();
    let mut refused = None;
    while children.len() < BOUND {
        // SAFETY: the child only waits for the signal that ends it.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: `pause` takes nothing.
                unsafe { libc::pause() };
            },
            child if child > 0 => children.push(child),
            _ => {
                refused = Some(std::io::Error::last_os_error());
                break;
            }
        }
    }
    for child in &children {
        // SAFETY: these are this process' own children, which it has not waited for.
        unsafe {
            libc::kill(*child, libc::SIGKILL);
            libc::waitpid(*child, std::ptr::null_mut(), 0);
        }
    }
    ended(refused, &format!("{} processes", children.len()))
}

fn ended(refused: Option<std::io::Error>, amount: &str) -> Outcome {
    match refused {
        Some(error) => Outcome::Contained(format!("{amount}, then: {error}")),
        None => Outcome::Allowed(amount.to_owned()),
    }
}

fn descriptors(bound: usize, what: &str, hold: bool, mut open: impl FnMut() -> bool) -> Outcome {
    let mut count = 0;
    let mut refused = None;
    while count < bound {
        if !open() {
            refused = Some(std::io::Error::last_os_error());
            break;
        }
        count += 1;
    }
    if !hold {
        // SAFETY: nothing else of this program uses descriptors above the standard ones.
        unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    }
    ended(refused, &format!("{count} {what}"))
}

/// Takes inotify instances, of which a user has 128 on a usual host.
pub(super) fn inotify(hold: bool) -> Outcome {
    // SAFETY: takes flags only.
    descriptors(100_000, "inotify instances", hold, || unsafe { libc::inotify_init1(0) } >= 0)
}

/// Takes pipes and fills their buffers.
pub(super) fn pipes(hold: bool) -> Outcome {
    descriptors(100_000, "pipes", hold, || {
        let mut ends = [0; 2];
        // SAFETY: there is room for both descriptors.
        unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) >= 0 }
    })
}

/// Takes contexts of asynchronous I/O, of which the whole machine has `fs.aio-max-nr`.
pub(super) fn aio() -> Outcome {
    const EVENTS: libc::c_long = 1024;
    const BOUND: usize = 1024;
    let mut contexts = 0;
    loop {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, for which there is room.
        if unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &raw mut context) } < 0 {
            let error = std::io::Error::last_os_error();
            return match contexts {
                0 => Outcome::Denied(format!("io_setup: {error}")),
                // No limit but the machine's stops it.
                _ => Outcome::Allowed(format!("{contexts} contexts, then: {error}")),
            };
        }
        contexts += 1;
        if contexts == BOUND {
            return Outcome::Allowed(format!("{contexts} contexts"));
        }
    }
}

/// Writes a file until there is no room, or this many MiB.
pub(super) fn disk(directory: &str, bound_mib: Option<u64>, hold: bool) -> Outcome {
    const BOUND_MIB: u64 = 8 << 10;
    let bound_mib = bound_mib.unwrap_or(BOUND_MIB).min(BOUND_MIB);
    let path = format!("{directory}/filler");
    let chunk = vec![b'x'; 1 << 20];
    let mut written = 0;
    let mut refused = None;
    match File::create(&path) {
        Ok(mut file) => {
            while written < bound_mib {
                if let Err(error) = file.write_all(&chunk).and_then(|()| file.sync_data()) {
                    refused = Some(error);
                    break;
                }
                written += 1;
            }
        }
        Err(error) => refused = Some(error),
    }
    if !hold {
        let _ = fs::remove_file(&path);
    }
    ended(refused, &format!("{written} MiB"))
}

/// Makes empty files until there is no room for one more.
pub(super) fn inodes(directory: &str, hold: bool) -> Outcome {
    const BOUND: u64 = 2_000_000;
    let home = format!("{directory}/inodes");
    let mut made = 0;
    let mut refused = fs::create_dir(&home).err();
    while refused.is_none() && made < BOUND {
        match File::create(format!("{home}/{made}")) {
            Ok(_) => made += 1,
            Err(error) => refused = Some(error),
        }
    }
    if !hold {
        let _ = fs::remove_dir_all(&home);
    }
    ended(refused, &format!("{made} files"))
}
