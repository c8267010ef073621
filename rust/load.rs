//! From a checkpoint's tensors to packed matrices: what is to be read is planned first, then one arena is filled in parallel.
//!
//! Files are read in chunks with positioned reads and packed at once; nothing is mapped. Sizes are held against the tensors'
//! shapes before anything is allocated. Knows no model.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::arena::Arena;
use crate::checkpoint::{Checkpoint, Dtype, TensorInfo};
use crate::error::{Error, Result};
use crate::kernels::{Element, LINE, Orientation, WIDTH, WeightType, of_element};
use crate::packed::{Packed, packed_bytes};
use crate::team::{self, Cancel, Member, Stop};

/// Bytes that one member reads at a time.
const CHUNK: usize = 1 << 20;

/// How a checkpoint's weights are to be stored.
#[derive(Debug, Clone, Copy)]
pub enum Rounding {
    /// Every value exactly, as narrowly as it can be.
    Auto,
    /// Every matrix as this type, and every other tensor rounded to its elements.
    As(&'static dyn WeightType),
}

/// Elements that a tensor is read as, where it may be a weight: f64 becomes f32 on the way, as torch casts it.
fn element(info: &TensorInfo) -> Option<Element> {
    match info.dtype {
        Dtype::F64 | Dtype::F32 => Some(Element::F32),
        Dtype::BF16 => Some(Element::Bf16),
        Dtype::F16 => Some(Element::F16),
        _ => None,
    }
}

/// A matrix to load.
#[derive(Debug)]
struct Planned<'a> {
    info: &'a TensorInfo,
    from: Element,
    to: &'static dyn WeightType,
    outputs: usize,
    inputs: usize,
    orientation: Orientation,
}

/// A matrix that [`Loader::finish`] will have packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

/// Plans and then reads the tensors of a model.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
    weights: Rounding,
    threads: usize,
    /// Ends the loading when it is set.
    cancel: &'a Cancel<'a>,
    planned: Vec<Planned<'a>>,
    used: HashSet<String>,
    parameters: usize,
}

impl<'a> Loader<'a> {
    /// A loader of tensors that may carry `prefix` before their names; reading ends when `cancel` is set.
    pub fn new(
        checkpoint: &'a Checkpoint,
        prefix: &'static str,
        weights: Rounding,
        threads: usize,
        cancel: &'a Cancel<'a>,
    ) -> Self {
        let (planned, used) = (Vec::new(), HashSet::new());
        Self { checkpoint, prefix, weights, threads, cancel, planned, used, parameters: 0 }
    }

    /// Reads a part of a tensor as its [`element`], unless the loading was `cancelled`: every loop over the chunks of a file comes by
    /// here, and looks as its thread may, the caller's by [`Cancel::ask`] and a member of the team by [`Member::cancelled`].
    fn read(&self, cancelled: bool, info: &TensorInfo, start: usize, buf: &mut [u8]) -> Result<()> {
        if cancelled {
            return Err(Error::Cancelled);
        }
        if info.dtype != Dtype::F64 {
            return self.checkpoint.read(info, start, buf);
        }
        let mut wide = allocate(info, 2 * buf.len())?;
        self.checkpoint.read(info, 2 * start, &mut wide)?;
        for (narrow, wide) in std::iter::zip(buf.chunks_exact_mut(4), wide.chunks_exact(8)) {
            let x = f64::from_le_bytes(wide.try_into().unwrap_or_default());
            if x.is_finite() && (x as f32).is_infinite() {
                return Err(overflow(info, Element::F32.name()));
            }
            narrow.copy_from_slice(&(x as f32).to_le_bytes());
        }
        Ok(())
    }

    /// Whether the tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.find(self.prefix, name).is_some()
    }

    /// Whether there is a tensor whose name is one of these.
    pub fn has_any(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.checkpoint.names().any(|name| wanted(name.strip_prefix(self.prefix).unwrap_or(name)))
    }

    /// The tensor's place, checked against its shape and noted as used.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<(&'a TensorInfo, Element)> {
        let info = self.checkpoint.require(self.prefix, name, shape)?;
        let Some(from) = element(info) else {
            return Err(info.malformed("F64, F32, F16 or BF16", format!("{:?}", info.dtype)));
        };
        self.used.insert(info.name.clone());
        self.parameters += info.elements();
        Ok((info, from))
    }

    /// Plans a matrix of `outputs × inputs`.
    ///
    /// # Errors
    /// `Checkpoint` when the tensor is missing or of another shape or type.
    pub fn matrix(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
        orientation: Orientation,
    ) -> Result<Ticket> {
        let shape = match orientation {
            Orientation::OutIn => [outputs, inputs],
            Orientation::InOut => [inputs, outputs],
        };
        self.plan(name, shape, orientation, |weights, from| match weights {
            Rounding::As(to) => to,
            Rounding::Auto => of_element(from),
        })
    }

    /// As [`Loader::matrix`], `[outputs, inputs]`, for one that some types would serve badly: these say what it becomes instead, see
    /// [`WeightType::delicate`].
    ///
    /// # Errors
    /// As for [`Loader::matrix`].
    pub fn delicate_matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Ticket> {
        self.plan(name, [outputs, inputs], Orientation::OutIn, |weights, from| match weights {
            Rounding::Auto => of_element(from),
            Rounding::As(to) => to.delicate(from).unwrap_or(to),
        })
    }

    fn plan(
        &mut self,
        name: &str,
        shape: [usize; 2],
        orientation: Orientation,
        to: impl FnOnce(Rounding, Element) -> &'static dyn WeightType,
    ) -> Result<Ticket> {
        let (info, from) = self.take(name, &shape)?;
        let to = to(self.weights, from);
        let [outputs, inputs] = match orientation {
            Orientation::OutIn => shape,
            Orientation::InOut => [shape[1], shape[0]],
        };
        self.planned.push(Planned { info, from, to, outputs, inputs, orientation });
        Ok(Ticket(self.planned.len() - 1))
    }

    /// Reads a whole tensor as f32, rounded as the weights are.
    ///
    /// # Errors
    /// As for [`Loader::matrix`]; `Checkpoint` when a finite value overflows float16; `Cancelled`.
    pub fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (info, from) = self.take(name, shape)?;
        let mut bytes = allocate(info, info.elements() * from.bytes())?;
        for (place, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
            self.read(self.cancel.ask(), info, place * CHUNK, chunk)?;
        }
        let mut values = from.widen(&bytes);
        let rounded = match self.weights {
            Rounding::As(to) => to.element(),
            Rounding::Auto => None,
        };
        if let Some(to) = rounded {
            for x in &mut values {
                let narrow = to.round(*x);
                if narrow.is_infinite() && x.is_finite() {
                    return Err(overflow(info, to.name()));
                }
                *x = narrow;
            }
        }
        Ok(values)
    }

    /// Whether two tensors of the same shape hold the same values; both count as used.
    ///
    /// # Errors
    /// As for [`Loader::values`].
    pub fn same(&mut self, a: &str, b: &str, shape: &[usize]) -> Result<bool> {
        let ((a, fa), (b, fb)) = (self.take(a, shape)?, self.take(b, shape)?);
        // The first was counted where it was planned, and the second is where it turns out to differ.
        self.parameters -= a.elements() + b.elements();
        let (ca, cb) = (CHUNK / 4 * fa.bytes(), CHUNK / 4 * fb.bytes());
        let (bytes_a, bytes_b) = (a.elements() * fa.bytes(), b.elements() * fb.bytes());
        let (mut buf_a, mut buf_b) = (vec![0; ca.min(bytes_a)], vec![0; cb.min(bytes_b)]);
        let (mut at_a, mut at_b) = (0, 0);
        while at_a < bytes_a {
            let (na, nb) = (ca.min(bytes_a - at_a), cb.min(bytes_b - at_b));
            self.read(self.cancel.ask(), a, at_a, &mut buf_a[..na])?;
            self.read(self.cancel.ask(), b, at_b, &mut buf_b[..nb])?;
            let equal = if fa == fb {
                buf_a[..na] == buf_b[..nb]
            } else {
                fa.widen(&buf_a[..na]) == fb.widen(&buf_b[..nb])
            };
            if !equal {
                return Ok(false);
            }
            at_a += na;
            at_b += nb;
        }
        Ok(true)
    }

    /// Notes tensors that are known and not needed, such as buffers of constants.
    pub fn ignore(&mut self, known: impl Fn(&str) -> bool) {
        for name in self.checkpoint.names() {
            if known(name.strip_prefix(self.prefix).unwrap_or(name)) {
                self.used.insert(name.to_owned());
            }
        }
    }

    /// Names of tensors that nothing has asked for.
    pub fn unknown(&self) -> Vec<String> {
        self.checkpoint.unknown(&self.used)
    }

    /// Elements of all tensors taken.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Reads and packs every planned matrix; the result is in the order of the tickets.
    ///
    /// # Errors
    /// `OutOfMemory`, `Io`, `Cancelled`, or `Checkpoint` when a file is cut short or a value overflows float16.
    pub fn finish(&mut self) -> Result<Packing> {
        if matches!(self.weights, Rounding::Auto) {
            self.narrow()?;
        }
        let too_large = || Error::OutOfMemory { what: "weights".to_owned(), bytes: usize::MAX };
        let mut offsets = Vec::with_capacity(self.planned.len());
        let mut total = 0usize;
        for p in &self.planned {
            offsets.push(total);
            let bytes = packed_bytes(p.to, p.outputs, p.inputs).ok_or_else(too_large)?;
            total = total.checked_add(bytes).ok_or_else(too_large)?;
        }
        let arena = Arena::new(total, "weights")?;
        let matrices: Vec<Packed> = std::iter::zip(&self.planned, offsets)
            .map(|(p, at)| Packed::new(&arena, at, p.to, p.outputs, p.inputs))
            .collect();
        let mut chunks = Vec::new();
        for (i, p) in self.planned.iter().enumerate() {
            let (rows, row) = p.rows();
            let whole = p.orientation == Orientation::InOut && p.to.takes_whole_columns();
            let step =
                if whole { rows.max(1) } else { (CHUNK / row.max(1)).next_multiple_of(WIDTH).max(WIDTH) };
            chunks.extend((0..rows).step_by(step).map(|first| (i, first, step.min(rows - first))));
        }
        self.parallel(&chunks, |member, &(i, first, n), buffer| {
            let p = &self.planned[i];
            let (_, row) = p.rows();
            buffer.resize(n * row, 0);
            self.read(member.cancelled(), p.info, first * row, buffer)?;
            // SAFETY: every chunk is other rows of a matrix that nobody reads yet, whole panels or pairs of them.
            let fits = unsafe { matrices[i].write(p.orientation, first, p.from, buffer) };
            if fits { Ok(()) } else { Err(overflow(p.info, p.to.name())) }
        })?;
        Ok(Packing { matrices, bytes: total })
    }

    /// Finds, for every planned f32 tensor, the narrowest type that keeps all its values.
    fn narrow(&mut self) -> Result<()> {
        let tests: Vec<usize> =
            (0..self.planned.len()).filter(|&i| self.planned[i].from == Element::F32).collect();
        let found: Vec<Mutex<Element>> = tests.iter().map(|_| Mutex::new(Element::F32)).collect();
        let indexed: Vec<(usize, usize)> = tests.iter().copied().enumerate().collect();
        self.parallel(&indexed, |member, &(slot, i), buffer| {
            let info = self.planned[i].info;
            let bytes = info.elements() * Element::F32.bytes();
            let mut fits = vec![Element::Bf16, Element::F16];
            let mut at = 0;
            while at < bytes && !fits.is_empty() {
                // A first look at a few values ends the search in nearly every f32 checkpoint.
                let n = if at == 0 { 4096 } else { CHUNK }.min(bytes - at);
                buffer.resize(n, 0);
                self.read(member.cancelled(), info, at, buffer)?;
                fits.retain(|s| s.holds(Element::F32, buffer));
                at += n;
            }
            if let (Some(s), Ok(mut found)) = (fits.first(), found[slot].lock()) {
                *found = *s;
            }
            Ok(())
        })?;
        for (slot, i) in indexed {
            self.planned[i].to = of_element(found[slot].lock().map_or(Element::F32, |s| *s));
        }
        Ok(())
    }

    /// Runs `work` on every item, on all threads, each with a buffer of its own; the first error ends it.
    fn parallel<T: Sync>(
        &self,
        items: &[T],
        work: impl Fn(&Member<'_>, &T, &mut Vec<u8>) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        // Items look by themselves: a team looks only where its members meet, and these never do.
        team::run(self.threads, self.cancel, |member| {
            let mut buffer = Vec::new();
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(e) = work(member, item, &mut buffer) {
                    if let Ok(mut failed) = failed.lock() {
                        failed.get_or_insert(e);
                    }
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(Stop);
                }
            }
            Ok(())
        })?;
        match failed.into_inner() {
            Ok(Some(e)) => Err(e),
            _ => Ok(()),
        }
    }
}

impl Planned<'_> {
    /// Rows of the tensor as it lies in the file, and the bytes of one.
    fn rows(&self) -> (usize, usize) {
        match self.orientation {
            Orientation::OutIn => (self.outputs, self.inputs * self.from.bytes()),
            Orientation::InOut => (self.inputs, self.outputs * self.from.bytes()),
        }
    }
}

/// Zeroed bytes for a tensor, or an error where the system has none.
fn allocate(info: &TensorInfo, bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    let refused = |_| Error::OutOfMemory { what: info.name.clone(), bytes };
    buffer.try_reserve_exact(bytes).map_err(refused)?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

/// A finite value became infinite.
fn overflow(info: &TensorInfo, to: &str) -> Error {
    let hint = match to {
        "float16" => "; load it with dtype=\"bfloat16\" or \"float32\"",
        _ => "", // Nothing that it could be loaded as has more range.
    };
    info.malformed(format!("values that {to} can hold{hint}"), "a finite value past its largest")
}

/// The packed matrices of a model.
#[derive(Debug)]
pub struct Packing {
    matrices: Vec<Packed>,
    /// Bytes of all matrices.
    pub bytes: usize,
}

impl Packing {
    /// The matrix of a ticket.
    pub fn get(&self, ticket: Ticket) -> Packed {
        self.matrices[ticket.0].clone()
    }
}

const _: () = assert!(CHUNK.is_multiple_of(LINE), "chunks of whole lines");
