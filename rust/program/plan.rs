//! From recorded values to buffers: who may use whose memory, from where on only wanted rows count, and the proof that no phase
//! reads what it writes.

use super::builder::{Value, wrong};
use super::{Cache, Op, Operand, Part, Phase, Product, Program, Shape, Which};
use crate::error::Result;
use crate::kernels::WIDTH;

/// When a value is made and read, and where it is kept.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    width: usize,
    made: usize,
    /// The last phase that reads it, or the one that makes it.
    last: usize,
    buffer: usize,
    /// Buffer of its wanted rows, where phases on both sides of the split read it.
    copy: Option<usize>,
}

/// A buffer that values take one after the other.
struct Taken {
    shape: Shape,
    /// Whether its writers leave padding as it is: it is zeroed before a step and must stay so.
    leaves_padding: bool,
    /// The last phase in which its value is needed.
    until: usize,
}

/// Gives every value a buffer.
pub(super) fn assign(mut phases: Vec<Phase<Value>>, values: usize) -> Result<Program> {
    let layers = layers(&phases)?;
    let split = split(&phases);
    note_rounding(&mut phases);
    note_packed_before(&mut phases);
    let mut lives = lives(&phases, values);
    let (mut buffers, mut copies) = (take_buffers(&phases, &mut lives, split), Vec::new());
    if let Some(split) = split {
        for life in lives.iter_mut().filter(|life| life.made < split && life.last > split) {
            copies.push((life.buffer, buffers.len()));
            life.copy = Some(buffers.len());
            buffers.push(Shape { width: life.width, rows: Which::Wanted });
        }
    }
    let after = |place: usize| split.is_some_and(|split| place > split);
    let operand = |value: Value, place: usize| {
        let life = lives[value.id];
        let (buffer, rows) = match life.copy {
            Some(copy) if after(place) => (copy, Which::Wanted),
            _ if split.is_some_and(|split| life.made >= split) => (life.buffer, Which::Wanted),
            _ => (life.buffer, Which::All),
        };
        Operand { buffer, width: value.width(), rows }
    };
    prove(&phases, &lives)?;
    let phases = phases.into_iter().enumerate().map(|(place, phase)| {
        let mut op = resolved(phase.op, |value| operand(value, place));
        if split == Some(place)
            && let Op::Attend { gather, .. } = &mut op
        {
            let crossing = lives.iter().filter_map(|life| Some((life, life.copy?)));
            gather.extend(crossing.map(|(life, copy)| {
                let of = |buffer, rows| Operand { buffer, width: life.width, rows };
                (of(life.buffer, Which::All), of(copy, Which::Wanted))
            }));
        }
        let rows = if split.is_some_and(|split| place >= split) { Which::Wanted } else { Which::All };
        Phase { name: phase.name, op, rows }
    });
    Ok(Program { phases: phases.collect(), buffers, copies, layers })
}

/// The phase from whose result on only wanted rows count, in a program that ends in logits: keys and values of every row are in
/// the cache then, and nothing reads an unwanted row any more.
fn split(phases: &[Phase<Value>]) -> Option<usize> {
    phases.iter().find(|phase| matches!(phase.op, Op::Head { .. }))?;
    phases.iter().rposition(|phase| matches!(phase.op, Op::Attend { cache: Cache::Own(_), .. }))
}

/// Number of layers of the cache that the program writes.
fn layers(phases: &[Phase<Value>]) -> Result<usize> {
    let (mut own, mut kept) = (0, 0);
    for phase in phases {
        let (expected, got) = match phase.op {
            Op::Attend { cache: Cache::Own(layer), .. } => (&mut own, layer),
            Op::Keep { layer, .. } => (&mut kept, layer),
            _ => continue,
        };
        if got != *expected {
            return Err(wrong(&phase.name, format!("layer {expected} of the cache"), got.to_string()));
        }
        *expected += 1;
    }
    Ok(own.max(1))
}

/// Marks products whose results are the input of another product as they are.
fn note_rounding(phases: &mut [Phase<Value>]) {
    let inputs: Vec<Value> = phases
        .iter()
        .filter_map(|phase| match &phase.op {
            Op::Linear { x, norm: None, .. } | Op::Head { x, norm: None, .. } => Some(*x),
            _ => None,
        })
        .collect();
    for phase in phases {
        if let Op::Linear { products, gated: false, residual: None, .. } = &mut phase.op {
            for product in products {
                product.round_output = inputs.contains(&product.out);
            }
        }
    }
}

/// Marks linear phases that find their input as the linear phase before has left it: nothing but keeping is between them.
fn note_packed_before(phases: &mut [Phase<Value>]) {
    let mut before = None;
    for phase in phases {
        match &mut phase.op {
            Op::Linear { x, norm, packed_before, .. } => {
                *packed_before = norm.is_none() && before == Some(*x);
                before = norm.is_none().then_some(*x);
            }
            Op::Keep { .. } => {}
            _ => before = None,
        }
    }
}

/// When every value is made and read.
fn lives(phases: &[Phase<Value>], values: usize) -> Vec<Life> {
    let mut lives = vec![Life::default(); values];
    for (place, phase) in phases.iter().enumerate() {
        for value in phase.op.writes() {
            let life = &mut lives[value.id];
            (life.width, life.made, life.last) = (value.width(), place, place);
        }
        for value in phase.op.reads() {
            lives[value.id].last = place;
        }
    }
    lives
}

/// Gives values buffers of their width, in order: the first one whose value nothing needs any more, or a new one.
fn take_buffers(phases: &[Phase<Value>], lives: &mut [Life], split: Option<usize>) -> Vec<Shape> {
    let mut taken: Vec<Taken> = Vec::new();
    for (place, phase) in phases.iter().enumerate() {
        let wanted = split.is_some_and(|split| place >= split);
        for value in phase.op.writes() {
            let width = value.width();
            let leaves_padding = phase.op.leaves_padding() && !width.is_multiple_of(WIDTH);
            let fits =
                |b: &Taken| b.shape.width == width && b.leaves_padding == leaves_padding && b.until < place;
            let buffer = taken.iter().position(fits).unwrap_or_else(|| {
                let rows = if wanted { Which::Wanted } else { Which::All };
                taken.push(Taken { shape: Shape { width, rows }, leaves_padding, until: place });
                taken.len() - 1
            });
            taken[buffer].until = lives[value.id].last;
            lives[value.id].buffer = buffer;
        }
    }
    taken.into_iter().map(|b| b.shape).collect()
}

/// Holds every phase to what makes one barrier behind it enough: it writes nothing that it reads, and what it reads is still there.
fn prove(phases: &[Phase<Value>], lives: &[Life]) -> Result<()> {
    let mut holds: Vec<Option<usize>> = Vec::new();
    for phase in phases {
        let (reads, writes) = (phase.op.reads(), phase.op.writes());
        for value in &reads {
            let buffer = lives[value.id].buffer;
            if holds.get(buffer).copied().flatten() != Some(value.id) {
                let expected = "values that were written before and not written over".to_owned();
                return Err(wrong(&phase.name, expected, format!("{value:?}")));
            }
        }
        for (i, value) in writes.iter().enumerate() {
            let buffer = lives[value.id].buffer;
            let others = reads.iter().chain(&writes[..i]);
            if let Some(other) = others.into_iter().find(|other| lives[other.id].buffer == buffer) {
                let expected =
                    "results in other memory than the inputs, the residual and each other".to_owned();
                return Err(wrong(&phase.name, expected, format!("{value:?} where {other:?} is")));
            }
            holds.resize(holds.len().max(buffer + 1), None);
            holds[buffer] = Some(value.id);
        }
    }
    Ok(())
}

/// The same phase over operands.
fn resolved(op: Op<Value>, of: impl Fn(Value) -> Operand) -> Op<Operand> {
    let part = |p: Part<Value>| Part { of: of(p.of), from: p.from, width: p.width };
    match op {
        Op::Embed { table, positions, angles, out } => {
            let angles = angles.map(|(rotary, rows)| (rotary, of(rows)));
            Op::Embed { table, positions, angles, out: of(out) }
        }
        Op::Linear { x, norm, products, gated, residual, packed_before } => Op::Linear {
            x: of(x),
            norm,
            products: products
                .into_iter()
                .map(|p| Product {
                    name: p.name,
                    linear: p.linear,
                    activation: p.activation,
                    round_output: p.round_output,
                    out: of(p.out),
                })
                .collect(),
            gated,
            residual: residual.map(&of),
            packed_before,
        },
        Op::Attend { queries, new, cache, heads, norms, angles, mask, out, gather } => Op::Attend {
            queries: part(queries),
            new: new.map(|both| both.map(part)),
            cache,
            heads,
            norms,
            angles: angles.map(&of),
            mask,
            out: of(out),
            gather,
        },
        Op::Keep { keys_values, layer, heads } => {
            Op::Keep { keys_values: keys_values.map(part), layer, heads }
        }
        Op::Norm { x, norm, out } => Op::Norm { x: of(x), norm, out: of(out) },
        Op::Head { x, norm, linear } => Op::Head { x: of(x), norm, linear },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// A norm from one value to another: the smallest phase that reads and writes.
    fn norm(x: Value, out: Value) -> Phase<Value> {
        Phase {
            name: "n".to_owned(),
            op: Op::Norm { x, norm: super::super::Slot::unused(), out },
            rows: Which::All,
        }
    }

    fn embed(out: Value) -> Phase<Value> {
        let op = Op::Embed { table: super::super::Slot::unused(), positions: None, angles: None, out };
        Phase { name: "e".to_owned(), op, rows: Which::All }
    }

    fn values<const N: usize>() -> [Value; N] {
        std::array::from_fn(|id| Value::numbered(id, 8))
    }

    #[test]
    fn a_phase_that_writes_what_it_reads_is_refused() {
        let [a, b] = values();
        assert!(assign(vec![embed(a), norm(a, b)], 2).is_ok(), "a sound record");
        for phases in [vec![embed(a), norm(a, a)], vec![norm(a, b)], vec![embed(a), norm(b, a)]] {
            assert!(matches!(assign(phases, 2), Err(Error::Program { .. })), "a race, or nothing to read");
        }
    }

    #[test]
    fn memory_of_what_is_still_read_is_not_written() {
        let [a, b, c, d] = values();
        // `a` is read until the end, `b` only once.
        let program = assign(vec![embed(a), norm(a, b), norm(b, c), norm(a, d)], 4).unwrap();
        let buffers: Vec<usize> =
            program.phases().iter().flat_map(|phase| phase.op.writes()).map(|out| out.buffer).collect();
        assert_eq!(buffers, [0, 1, 2, 1], "`d` takes what `b` has left");
        let mut lives = lives(&[embed(a), norm(a, b), norm(a, c)], 3);
        (lives[0].buffer, lives[1].buffer, lives[2].buffer) = (0, 0, 1);
        let proof = prove(&[embed(a), norm(a, b), norm(a, c)], &lives);
        assert!(matches!(proof, Err(Error::Program { .. })), "`b` lies where `a` is still read");
    }
}
