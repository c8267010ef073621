//! From a checkpoint's tensors to packed matrices: what is to be read is planned first, then one arena is filled in parallel.
//!
//! Files are read in chunks with positioned reads and packed at once; nothing is mapped. Sizes are held against the tensors'
//! shapes before anything is allocated. Knows no model.

mod digest;
mod keys;
mod rounding;
mod shares;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::arena::Arena;
use crate::checkpoint::{Checkpoint, Dtype, TensorInfo};
use crate::error::{Error, Result};
use crate::kernels::{Element, LINE, Orientation, WIDTH, WeightType, of_element};
use crate::packed::{Packed, packed_bytes};
use crate::team::{self, Cancel, Member, Stop};
use digest::Digest;
use keys::{Called, Keys};
pub use rounding::{DEFAULT, HEAD, Role, Rounding, Stored};
pub use shares::Share;
use shares::shares;

/// Bytes that one member reads at a time.
const CHUNK: usize = 1 << 20;

/// Elements that a tensor is read as, where it may be a weight: f64 becomes f32 on the way, as torch casts it.
fn element(info: &TensorInfo) -> Option<Element> {
    match info.dtype {
        Dtype::F64 | Dtype::F32 => Some(Element::F32),
        Dtype::BF16 => Some(Element::Bf16),
        Dtype::F16 => Some(Element::F16),
        _ => None,
    }
}

/// A matrix of a model.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'n> {
    /// Its name in the model: that of its module, without what precedes the names of a whole model.
    pub name: &'n str,
    /// Another name that means it.
    pub alias: Option<&'n str>,
    /// The tensor that it is read from.
    pub tensor: &'n str,
    /// What it is.
    pub role: Role,
    /// Number of outputs.
    pub outputs: usize,
    /// Number of inputs.
    pub inputs: usize,
    /// How the tensor lies.
    pub orientation: Orientation,
}

/// A matrix to load.
#[derive(Debug)]
struct Planned<'a> {
    name: String,
    info: &'a TensorInfo,
    from: Element,
    to: &'static dyn WeightType,
    /// Whether a narrower type is to be found that holds every value.
    exact: bool,
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
    weights: &'a Rounding,
    threads: usize,
    /// Ends the loading when it is set.
    cancel: &'a Cancel<'a>,
    planned: Vec<Planned<'a>>,
    used: HashSet<String>,
    counted: HashSet<&'a str>,
    parameters: usize,
    /// The keys of the rounding, and which matrices got them.
    keys: Keys,
    /// What has been read so far: the bits of values, then the types of the matrices.
    digest: Digest,
}

impl<'a> Loader<'a> {
    /// A loader of tensors that may carry `prefix` before their names; reading ends when `cancel` is set.
    pub fn new(
        checkpoint: &'a Checkpoint,
        prefix: &'static str,
        weights: &'a Rounding,
        threads: usize,
        cancel: &'a Cancel<'a>,
    ) -> Self {
        Self {
            checkpoint,
            prefix,
            weights,
            threads,
            cancel,
            planned: Vec::new(),
            used: HashSet::new(),
            counted: HashSet::new(),
            parameters: 0,
            keys: Keys::new(weights.keys()),
            digest: Digest::new(),
        }
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
        Ok((info, from))
    }

    /// Counts the parameters of a tensor, once.
    fn count(&mut self, info: &'a TensorInfo) {
        if self.counted.insert(&info.name) {
            self.parameters += info.elements();
        }
    }

    /// Plans a matrix. One that is read from the same tensor as another, and gets the same type, becomes the same.
    ///
    /// # Errors
    /// `Checkpoint` when the tensor is missing or of another shape or type.
    pub fn matrix(&mut self, matrix: &Matrix<'_>) -> Result<Ticket> {
        let &Matrix { role, outputs, inputs, orientation, .. } = matrix;
        let shape = match orientation {
            Orientation::OutIn => [outputs, inputs],
            Orientation::InOut => [inputs, outputs],
        };
        let (info, from) = self.take(matrix.tensor, &shape)?;
        self.count(info);
        // The head lies beside the body of a model, whose names the prefix precedes.
        let prefix = if role == Role::Head { "" } else { self.prefix };
        let key = self.keys.choose(&Called { role, name: matrix.name, alias: matrix.alias, prefix });
        let (to, exact) = match self.weights.of(key, role, from) {
            Stored::As(to) => (to, false),
            Stored::Auto => (of_element(from), from == Element::F32),
        };
        let name = matrix.name.to_owned();
        self.planned.push(Planned { name, info, from, to, exact, outputs, inputs, orientation });
        Ok(Ticket(self.planned.len() - 1))
    }

    /// Reads a whole tensor as f32, rounded as the weights are.
    ///
    /// # Errors
    /// As for [`Loader::matrix`]; `Checkpoint` when a finite value overflows float16; `Cancelled`.
    pub fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (info, from) = self.take(name, shape)?;
        self.count(info);
        let mut bytes = allocate(info, info.elements() * from.bytes())?;
        for (place, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
            self.read(self.cancel.ask(), info, place * CHUNK, chunk)?;
        }
        let mut values = from.widen(&bytes);
        if let Some(to) = self.weights.element() {
            for x in &mut values {
                let narrow = to.round(*x);
                if narrow.is_infinite() && x.is_finite() {
                    return Err(overflow(info, to.name()));
                }
                *x = narrow;
            }
        }
        self.digest.values(&values);
        Ok(values)
    }

    /// Whether two tensors of the same shape hold the same values; both count as used.
    ///
    /// # Errors
    /// As for [`Loader::values`].
    pub fn same(&mut self, a: &str, b: &str, shape: &[usize]) -> Result<bool> {
        let ((a, fa), (b, fb)) = (self.take(a, shape)?, self.take(b, shape)?);
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

    /// A number that two loads of one checkpoint have in common when all that they hold is the same, whatever was asked for: a matrix
    /// is read from the same tensor, so that its type says what it holds. It is complete behind [`Loader::finish`].
    pub fn digest(&self) -> u64 {
        self.digest.get()
    }

    /// Sees to it that every key is one that a matrix gets, and that every matrix can be of its type.
    fn check(&self) -> Result<()> {
        self.keys.check()?;
        let Some(p) = self.planned.iter().find(|p| p.inputs > p.to.most_inputs()) else { return Ok(()) };
        let (name, to, most) = (&p.name, p.to.name(), p.to.most_inputs());
        let expected = format!(
            "another type for {name} (a part of its own: {{\"{name}\": \"bfloat16\"}}): {to} takes at most {most} inputs"
        );
        let got = format!("{to} for {} inputs", p.inputs);
        Err(Error::Option { option: "dtype".to_owned(), expected, got })
    }

    /// For every planned matrix the first one that is the same: read from the same tensor to the same type.
    fn firsts(&self) -> Vec<usize> {
        let mut seen = HashMap::new();
        let same = |p: &Planned<'a>| (&p.info.name, p.to.name(), p.to.group(), p.outputs);
        self.planned.iter().enumerate().map(|(i, p)| *seen.entry(same(p)).or_insert(i)).collect()
    }

    /// Reads and packs every planned matrix; the result is in the order of the tickets.
    ///
    /// # Errors
    /// `Option` for a key of the rounding that no matrix has, or a type that cannot hold a matrix; `OutOfMemory`, `Io`, `Cancelled`,
    /// or `Checkpoint` when a file is cut short or a value overflows float16.
    pub fn finish(&mut self) -> Result<Packing> {
        self.check()?;
        self.narrow()?;
        for p in &self.planned {
            [&p.name, &p.info.name, p.to.name()].into_iter().for_each(|text| self.digest.text(text));
            self.digest.number(p.to.group() as u64);
        }
        let firsts = self.firsts();
        let too_large = || Error::OutOfMemory { what: "weights".to_owned(), bytes: usize::MAX };
        let (mut offsets, mut sizes) = (Vec::with_capacity(firsts.len()), Vec::with_capacity(firsts.len()));
        let mut total = 0usize;
        for (i, p) in self.planned.iter().enumerate() {
            let own = firsts[i] == i;
            let bytes = packed_bytes(p.to, p.outputs, p.inputs).ok_or_else(too_large)?;
            offsets.push(if own { total } else { offsets[firsts[i]] });
            sizes.push(if own { bytes } else { 0 });
            total = total.checked_add(sizes[i]).ok_or_else(too_large)?;
        }
        let arena = Arena::new(total, "weights")?;
        let matrices: Vec<Packed> = std::iter::zip(&self.planned, offsets)
            .map(|(p, at)| Packed::new(&arena, at, p.to, p.outputs, p.inputs))
            .collect();
        let mut chunks = Vec::new();
        for (i, p) in self.planned.iter().enumerate().filter(|(i, _)| firsts[*i] == *i) {
            let (rows, row) = p.rows();
            let whole = p.orientation == Orientation::InOut && p.to.takes_whole_columns();
            let step =
                if whole { rows.max(1) } else { (CHUNK / row.max(1)).next_multiple_of(WIDTH).max(WIDTH) };
            chunks.extend((0..rows).step_by(step).map(|first| (i, first, step.min(rows - first))));
        }
        self.parallel(&chunks, |member, &(i, first, n), buffer| {
            let p = &self.planned[i];
            let (_, row) = p.rows();
            resize(buffer, p.info, n * row)?;
            self.read(member.cancelled(), p.info, first * row, buffer)?;
            // SAFETY: every chunk is other rows of a matrix that nobody reads yet, whole panels or pairs of them.
            let fits = unsafe { matrices[i].write(p.orientation, first, p.from, buffer) };
            if fits { Ok(()) } else { Err(overflow(p.info, p.to.name())) }
        })?;
        Ok(Packing { matrices, bytes: total, shares: shares(&self.planned, &firsts, &sizes) })
    }

    /// Finds, for every f32 tensor that is to keep its values, the narrowest type that does.
    fn narrow(&mut self) -> Result<()> {
        let mut tests: Vec<&TensorInfo> = Vec::new();
        for p in self.planned.iter().filter(|p| p.exact) {
            if !tests.iter().any(|info| info.name == p.info.name) {
                tests.push(p.info);
            }
        }
        let found: Vec<Mutex<Element>> = tests.iter().map(|_| Mutex::new(Element::F32)).collect();
        let indexed: Vec<(usize, &TensorInfo)> = tests.iter().copied().enumerate().collect();
        self.parallel(&indexed, |member, &(slot, info), buffer| {
            let bytes = info.elements() * Element::F32.bytes();
            let mut fits = vec![Element::Bf16, Element::F16];
            let mut at = 0;
            while at < bytes && !fits.is_empty() {
                // A first look at a few values ends the search in nearly every f32 checkpoint.
                let n = if at == 0 { 4096 } else { CHUNK }.min(bytes - at);
                resize(buffer, info, n)?;
                self.read(member.cancelled(), info, at, buffer)?;
                fits.retain(|s| s.holds(Element::F32, buffer));
                at += n;
            }
            if let (Some(s), Ok(mut found)) = (fits.first(), found[slot].lock()) {
                *found = *s;
            }
            Ok(())
        })?;
        let found: HashMap<&str, Element> = indexed
            .iter()
            .map(|&(slot, info)| (info.name.as_str(), found[slot].lock().map_or(Element::F32, |s| *s)))
            .collect();
        for p in self.planned.iter_mut().filter(|p| p.exact) {
            p.to = of_element(found.get(p.info.name.as_str()).copied().unwrap_or(Element::F32));
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
    resize(&mut buffer, info, bytes)?;
    Ok(buffer)
}

/// Gives a buffer so many bytes for a tensor, or an error where the system has none.
fn resize(buffer: &mut Vec<u8>, info: &TensorInfo, bytes: usize) -> Result<()> {
    let refused = |_| Error::OutOfMemory { what: info.name.clone(), bytes };
    buffer.try_reserve_exact(bytes.saturating_sub(buffer.len())).map_err(refused)?;
    buffer.resize(bytes, 0);
    Ok(())
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
    /// What each type takes of them.
    pub shares: Vec<Share>,
}

impl Packing {
    /// The matrix of a ticket.
    pub fn get(&self, ticket: Ticket) -> Packed {
        self.matrices[ticket.0].clone()
    }
}

const _: () = assert!(CHUNK.is_multiple_of(LINE), "chunks of whole lines");
