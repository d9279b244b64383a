//! Counts what goes in and what comes out of a decoder, and stops archives that grow too much.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use super::UnpackLimits;

/// Below this size nobody cares how well a layer was compressed.
const EXPANSION_FREE_BYTES: u64 = 64 << 20;

/// An archive went beyond a limit.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in super::super) struct LimitExceeded(String);

struct State {
    limits: UnpackLimits,
    compressed_bytes: Cell<u64>,
    plain_bytes: Cell<u64>,
    /// How many bytes may be read until the next entry is there.
    allowance: Cell<u64>,
}

/// The counters of one archive.
pub(in super::super) struct Meter(Rc<State>);

impl Meter {
    pub(in super::super) fn new(limits: UnpackLimits) -> Self {
        Self(Rc::new(State {
            limits,
            compressed_bytes: Cell::new(0),
            plain_bytes: Cell::new(0),
            allowance: Cell::new(u64::MAX),
        }))
    }

    /// From here on, headers are read, and held in memory.
    pub(in super::super) fn expect_headers(&self, max_bytes: u64) {
        self.0.allowance.set(max_bytes);
    }

    /// From here on, content is read.
    pub(super) fn expect_data(&self) {
        self.0.allowance.set(u64::MAX);
    }

    pub(super) fn compressed<R: Read>(&self, inner: R) -> CompressedMeter<R> {
        CompressedMeter { inner, state: Rc::clone(&self.0) }
    }

    pub(in super::super) fn plain<R: Read>(&self, inner: R) -> PlainMeter<R> {
        PlainMeter { inner, state: Rc::clone(&self.0) }
    }
}

pub(super) struct CompressedMeter<R> {
    inner: R,
    state: Rc<State>,
}

impl<R: Read> Read for CompressedMeter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.state.compressed_bytes.set(self.state.compressed_bytes.get() + n as u64);
        Ok(n)
    }
}

pub(in super::super) struct PlainMeter<R> {
    inner: R,
    state: Rc<State>,
}

impl<R: Read> Read for PlainMeter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let count = n as u64;
        let state = &self.state;
        let limits = &state.limits;
        let plain = state.plain_bytes.get() + count;
        state.plain_bytes.set(plain);
        let exceeded = |text: String| Err(io::Error::other(LimitExceeded(text)));

        let allowance = state.allowance.get();
        if count > allowance {
            return exceeded("the header of an entry is too large".to_owned());
        }
        if allowance != u64::MAX {
            state.allowance.set(allowance - count);
        }
        // The archive's own overhead, a header and padding an entry, is not content.
        let overhead = limits.max_entries.saturating_mul(2048).saturating_add(1 << 20);
        if plain > limits.max_bytes.saturating_add(overhead) {
            return exceeded(format!("it unpacks to more than {} bytes", limits.max_bytes));
        }
        let compressed = state.compressed_bytes.get();
        if plain > EXPANSION_FREE_BYTES && plain / limits.max_expansion.max(1) > compressed {
            return exceeded(format!(
                "it unpacks to more than {} times its size, as decompression bombs do; raise \
                 max_expansion in [images] if it is none",
                limits.max_expansion
            ));
        }
        Ok(n)
    }
}

impl<R: Seek> Seek for PlainMeter<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
