//! What this machine can do at most, measured with the kernels' own probes on the whole team: the numbers that speeds are
//! stated against. It knows threads and probes, and no models.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::arena::Arena;
use crate::error::Result;
use crate::kernels::probe::Arithmetic;
use crate::kernels::{self, Kernels};
use crate::team::{self, Cancel};

/// Bytes ahead of a read at which the next lines are asked for; which is best depends on the CPU.
const AHEAD: [usize; 4] = [0, 512, 2048, 4096];
/// Reads of the whole buffer per distance; the best one counts.
const PASSES: usize = 3;
/// Seconds of arithmetic per type.
const SECONDS: f64 = 0.1;

/// Limits of the machine, at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes per second read from a buffer of the given size by all threads.
    pub read: f64,
    /// FLOP per second of f32 multiply-adds in registers, all threads.
    pub f32: Arithmetic,
    /// FLOP per second of the bf16 dot, where it is an instruction that this CPU does fast.
    pub bf16: Option<Arithmetic>,
    /// Operations per second on integers, by the instruction that products of eight-bit weights are formed with.
    pub int8: Arithmetic,
}

/// Measures with `threads` threads; takes about half a second, and `bytes` of memory.
///
/// # Errors
/// `OutOfMemory` when the buffer is refused, `Isa` when the forced instruction set is absent.
pub fn measure(bytes: usize, threads: usize) -> Result<Limits> {
    let kernels = Kernels::chosen()?;
    let probes = kernels.probes();
    let length = bytes.div_ceil(size_of::<f32>());
    // On the same kind of pages as weights, and written: untouched pages are all the same one in the cache.
    let buffer = Arena::filled(length, 1.0, "a buffer to measure reading")?;
    let cancel = Cancel::never();
    let mut best = f64::INFINITY;
    for ahead in AHEAD.repeat(PASSES) {
        let start = Instant::now();
        team::run(threads, &cancel, |member| {
            probes.read(&buffer[member.share(length)], ahead);
            Ok(())
        })?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let together = |rate: &(dyn Fn() -> Arithmetic + Sync)| -> Result<Arithmetic> {
        let sum = Mutex::new(Arithmetic { peak: 0.0, sustained: 0.0 });
        team::run(threads, &cancel, |member| {
            member.barrier()?;
            let own = rate();
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.peak += own.peak;
            sum.sustained += own.sustained;
            Ok(())
        })?;
        Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner))
    };
    let f32 = together(&|| probes.fma_flops(SECONDS))?;
    let fast = kernels.has_bf16_dot && kernels::identify().family.fast_bf16_dot();
    let bf16 = if fast { Some(together(&|| probes.dot_flops(SECONDS))?) } else { None };
    let int8 = together(&|| probes.integer_ops(SECONDS))?;
    Ok(Limits { read: bytes as f64 / best, f32, bf16, int8 })
}
