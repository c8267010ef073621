//! Where the time of a model's calls goes: the steps of its programs, phase by phase, and the choice of tokens between them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::registry::Network;
use crate::execute::{self, Count, Line};
use crate::forks::PerProcess;
use crate::program::Program;

/// What is counted of a model while somebody reads it; everything is counted for all readers together, and per process.
#[derive(Debug)]
pub struct Profile {
    /// How many readers there are; while there are none, nothing is counted.
    readers: AtomicUsize,
    encoder: Option<execute::Profile>,
    decoder: Option<execute::Profile>,
    own: PerProcess<Own>,
}

/// What a process counts itself.
#[derive(Debug)]
struct Own {
    /// When it began to count.
    began: Instant,
    choosing: Mutex<Count>,
}

impl Own {
    fn new() -> Self {
        Self { began: Instant::now(), choosing: Mutex::default() }
    }
}

/// What was counted of a model in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Of every line, in their order.
    pub lines: Vec<Count>,
    /// Of choosing tokens: how often rows of a step did, and the time.
    pub choosing: Count,
    /// Nanoseconds since the process began to count.
    pub nanos: u64,
}

impl Profile {
    /// One that nobody reads, of these forwards.
    pub(super) fn of(network: &Network) -> Self {
        let new = |program: &Program| Some(execute::Profile::new(program));
        let (encoder, decoder) = match network {
            Network::Decoder(decoder) => (None, new(decoder)),
            Network::EncoderDecoder { encoder, decoder } => (new(encoder), new(decoder)),
            Network::Encoder(encoder) => (new(encoder), None),
        };
        Self { readers: AtomicUsize::new(0), encoder, decoder, own: PerProcess::new() }
    }

    /// A reader comes, from which on everything is counted.
    pub fn begin(&self) {
        self.own.get(Own::new);
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    /// A reader goes, for each that has come.
    pub fn end(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    /// That of the encoder's steps, while somebody reads it.
    pub(super) fn of_encoder(&self) -> Option<&execute::Profile> {
        self.encoder.as_ref().filter(|_| self.is_read())
    }

    /// That of the decoder's steps, while somebody reads it.
    pub(super) fn of_decoder(&self) -> Option<&execute::Profile> {
        self.decoder.as_ref().filter(|_| self.is_read())
    }

    /// Notes that tokens are being chosen, while somebody reads it.
    pub(super) fn choosing(&self) -> Option<Choosing<'_>> {
        self.is_read().then(|| Choosing { profile: self, began: Instant::now() })
    }

    fn programs(&self) -> impl Iterator<Item = &execute::Profile> {
        self.encoder.iter().chain(&self.decoder)
    }

    /// Its lines: those of the encoder's phases, and those of the decoder's.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.programs().flat_map(execute::Profile::lines)
    }

    /// What this process has counted so far.
    pub fn counts(&self) -> Counts {
        let own = self.own.get(Own::new);
        let choosing = *own.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = self.programs().flat_map(execute::Profile::counts).collect();
        Counts { lines, choosing, nanos: nanos(own.began) }
    }
}

/// Tokens are being chosen until it is dropped.
#[derive(Debug)]
pub struct Choosing<'a> {
    profile: &'a Profile,
    began: Instant,
}

impl Drop for Choosing<'_> {
    fn drop(&mut self) {
        let own = self.profile.own.get(Own::new);
        let mut choosing = own.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        choosing.add(Count { calls: 1, nanos: nanos(self.began), ..Count::default() });
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
