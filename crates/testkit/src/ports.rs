//! Ports that no other test has: of this process, or of another that runs beside it.
//!
//! They lie below those that the kernel takes for connections of its own choice. A port that was
//! asked for as "any" and let go of again may be a connection's a moment later.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use parking_lot::Mutex;

const FIRST: u16 = 10_000;
const BLOCKS: u16 = 190;
const BLOCK: u16 = 100;

/// The blocks of this process, each with the lock that makes it so, and what is left of the last.
struct Blocks {
    locks: Vec<(u16, File)>,
    left: RangeInclusive<u16>,
}

#[expect(clippy::reversed_empty_ranges, reason = "nothing is left before the first is taken")]
static BLOCKS_HELD: Mutex<Blocks> = Mutex::new(Blocks { locks: Vec::new(), left: 1..=0 });

/// A port that nobody uses, for TCP and UDP.
pub fn free() -> u16 {
    *range(1).start()
}

/// So many ports in a row that nobody uses; at most 100.
pub fn range(count: u16) -> RangeInclusive<u16> {
    assert!((1..=BLOCK).contains(&count), "a block has {BLOCK} ports");
    let mut blocks = BLOCKS_HELD.lock();
    loop {
        while blocks.left.len() >= count.into() {
            let first = *blocks.left.start();
            let ports = first..=first + count - 1;
            if let Some(used) = ports.clone().rev().find(|port| !is_free(*port)) {
                blocks.left = used + 1..=*blocks.left.end();
                continue;
            }
            blocks.left = first + count..=*blocks.left.end();
            return ports;
        }
        blocks.take();
    }
}

impl Blocks {
    /// Takes a block that no process has. It is this one's until it ends.
    fn take(&mut self) {
        let directory = std::env::temp_dir().join("stackd-test-ports");
        std::fs::create_dir_all(&directory).expect("a directory for the locks of ports");
        let held = |block| self.locks.iter().any(|(number, _)| *number == block);
        // Not from the same end as other processes.
        let start = std::process::id() as u16 % BLOCKS;
        for block in (start..BLOCKS).chain(0..start).filter(|block| !held(*block)) {
            let lock = File::create(directory.join(block.to_string())).expect("a lock file");
            if lock.try_lock().is_ok() {
                self.locks.push((block, lock));
                let first = FIRST + block * BLOCK;
                self.left = first..=first + BLOCK - 1;
                return;
            }
        }
        panic!("all {BLOCKS} blocks of ports are held by tests that run");
    }
}

fn is_free(port: u16) -> bool {
    let any = std::net::Ipv4Addr::UNSPECIFIED;
    TcpListener::bind((any, port)).is_ok() && UdpSocket::bind((any, port)).is_ok()
}
