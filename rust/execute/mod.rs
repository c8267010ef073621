//! The one thing that every member of the team does in a step: the phases of a program, with a barrier behind each.

mod backend;
mod buffers;
mod logits;
mod plan;
mod profile;
mod scores;
mod trace;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Result;
use crate::kv;
use crate::layers::attention::{Attention, AttentionMask, Keys, KeysValues, Span};
use crate::layers::embedding::{self, Input, Source};
use crate::layers::heads::Preparation;
use crate::layers::linear::{Epilogue, Prepared};
use crate::layers::{Context, Rows, Runtime};
use crate::program::{Cache, Op, Operand, Part, Phase, Product, Program, Weights, Which};
use crate::team::{self, Cancel, Member, Stop, Turn};
pub use backend::{Backend, Remote};
pub use buffers::{Buffers, Taken, activation_bytes};
use buffers::{Sizes, Views};
use logits::LogitsWriter;
pub use plan::Plan;
use profile::Clock;
pub use profile::{Count, Line, Profile, Steps};
use scores::ScoresWriter;
pub use scores::{Asked, LOGITS_BYTES, Scored, score_row, side_by_side};
pub use trace::{Activation, Trace};

/// A program with everything that it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Executor<'a> {
    /// The forward.
    pub program: &'a Program,
    /// A table of weights for its slots.
    pub weights: &'a Weights,
    /// Kernels and threads.
    pub runtime: &'a Runtime,
    /// Sizes of the cache of the rows' own sequences or sources.
    pub own: &'a kv::Shape,
    /// Sizes of the cache of what is kept of sources.
    pub memory: &'a kv::Shape,
    /// Counts where the time of steps goes, where somebody wants to know.
    pub profile: Option<&'a Profile>,
    /// The device that runs the program in the team's place, where there is one.
    pub backend: Option<&'a dyn Backend>,
}

/// What one step is given.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// What the rows of the plan's span `i` are.
    pub of: &'a (dyn Fn(usize) -> Input<'a> + Sync),
    /// Stops the step when it is set.
    pub cancel: &'a Cancel<'a>,
    /// Shows every activation by name.
    pub trace: Option<&'a Trace>,
}

/// What a step leaves of its wanted rows.
#[derive(Debug)]
pub enum Results<'a> {
    /// Nothing: nobody wants a row, or the program has no head.
    Nothing,
    /// Their logits, `W × V`.
    Logits(&'a mut [f32]),
    /// What they say of some tokens, in the order of the rows; their logits are made and used some rows at a time.
    Scores(&'a [Asked], &'a mut [Scored]),
}

/// Where the results of a step go.
#[derive(Debug, Clone, Copy)]
enum Out<'a> {
    Logits(LogitsWriter),
    Scores(ScoresWriter<'a>),
}

/// One step for the members that run it.
struct Step<'a, 'i> {
    executor: Executor<'a>,
    inputs: &'a Inputs<'i>,
    plan: &'a Plan,
    views: Views<'a>,
    /// Whether there are rows that nobody wants.
    narrowed: bool,
    out: Out<'a>,
    /// Notes when phases end, where somebody wants to know.
    clock: Option<&'a Clock<'a>>,
    /// Barriers of the step, once it is done.
    barriers: AtomicUsize,
}

impl Executor<'_> {
    /// Waits for the turn of a step: the team's, but on a device nobody's, since that orders its steps by itself.
    ///
    /// # Errors
    /// As for [`team::turn`].
    pub fn turn(self, cancel: &Cancel<'_>) -> Result<Turn> {
        let threads = if self.backend.is_some() { 1 } else { self.runtime.threads };
        team::turn(threads, cancel)
    }

    /// Runs the plan of `buffers` and leaves `results` of the wanted rows; returns the rows that the program ends
    /// in, where it has no head. The plan's blocks are of caches of these sizes, reserved for its rows; `inputs` has a row for each.
    ///
    /// # Errors
    /// `OutOfMemory`, `Cancelled`, `Panicked`.
    pub fn run<'b>(
        self,
        turn: &mut Turn,
        buffers: &'b mut Buffers,
        inputs: Inputs<'_>,
        results: Results<'_>,
    ) -> Result<Option<Rows<'b>>> {
        let Buffers { plan, activations, barriers, laps } = buffers;
        if let Some(backend) = self.backend {
            let rows = plan.rows();
            let last =
                self.program.result().map(|result| activations.plain(rows, result.width)).transpose()?;
            let scans = self.runtime.kernels.scans();
            backend.run(Remote { program: self.program, plan, inputs, results, last, scans })?;
            return Ok(last);
        }
        // A trace takes longer than what it shows.
        let profile = self.profile.filter(|_| inputs.trace.is_none());
        let clock = profile.map(|_| Clock::start(laps, self.program.phases().len()));
        let (rows, wanted) = (plan.rows(), plan.wanted());
        let (vocab, side_by_side, out) = match results {
            Results::Nothing => (0, 0, Out::Logits(LogitsWriter::new(&mut []))),
            Results::Logits(logits) => (
                logits.len().checked_div(wanted).unwrap_or(0),
                wanted,
                Out::Logits(LogitsWriter::new(logits)),
            ),
            Results::Scores(asked, scored) => {
                let vocab =
                    self.program.head().map_or(0, |slot| self.weights.linear(slot).weight().outputs());
                (vocab, side_by_side(wanted, vocab), Out::Scores(ScoresWriter::new(asked, scored)))
            }
        };
        let sizes = Sizes { rows, wanted, vocab, side_by_side, traced: inputs.trace.is_some() };
        let views = activations.lay_out(self.program, self.runtime, sizes)?;
        let (narrowed, count, clock) = (plan.is_narrowed(), AtomicUsize::new(0), clock.as_ref());
        let step =
            Step { executor: self, inputs: &inputs, plan, views, narrowed, out, clock, barriers: count };
        let outcome = turn.run(inputs.cancel, |member| step.member(member));
        if let (Some(profile), Some(clock)) = (profile, clock) {
            profile.count(self, plan, clock);
        }
        outcome?;
        *barriers = step.barriers.into_inner();
        Ok(self.program.result().map(|result| views.rows(result)))
    }
}

impl Step<'_, '_> {
    /// What every member of the team does.
    fn member(&self, member: &Member<'_>) -> Result<(), Stop> {
        let ctx = Context {
            member,
            runtime: self.executor.runtime,
            scratch: self.views.scratch(member.index()),
            packed_rows: self.views.packed(),
        };
        self.clock.filter(|_| member.index() == 0).inspect(|clock| clock.enter());
        let mut packed = None;
        for (place, phase) in self.executor.program.phases().iter().enumerate() {
            // All members see the same number of rows, so all of them leave a phase out or none does.
            let appends = matches!(phase.op, Op::Attend { new: Some(_), .. });
            if self.views.count(phase.rows) > 0 || appends {
                packed = self.phase(&ctx, phase, packed)?;
                member.barrier_noting(|| _ = self.clock.inspect(|clock| clock.note(place)))?;
                self.show_results(&ctx, phase)?;
            }
        }
        if member.index() == 0 {
            self.barriers.store(member.barriers(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// One phase; returns the input of a linear one as it was packed.
    fn phase<'s>(
        &'s self,
        ctx: &Context<'_>,
        phase: &Phase<Operand>,
        packed: Option<Prepared<'s>>,
    ) -> Result<Option<Prepared<'s>>, Stop> {
        let (w, views) = (self.executor.weights, &self.views);
        match &phase.op {
            Op::Embed { table, positions, angles, out } => {
                let positions = positions.map_or(&[] as &[f32], |slot| w.values(slot));
                let source = |(i, span): (usize, &Span)| Source {
                    row: span.row,
                    position: span.position,
                    is_long: span.is_long,
                    input: (self.inputs.of)(i),
                };
                let sources = || self.plan.spans().iter().enumerate().map(source);
                embedding::forward(ctx, w.table(*table), positions, sources(), views.rows(*out));
                if let Some((rotary, rows)) = angles {
                    embedding::angles(ctx, w.rotary(*rotary), sources(), out.width, views.rows(*rows));
                }
            }
            Op::Linear { x, norm, products, gated, residual, packed_before } => {
                let (rows, first) = (views.rows(*x), w.linear(products[0].linear));
                let mut x = match (norm, packed) {
                    (Some((_, norm)), _) => {
                        let (shared, own) = self.room_for_norm(ctx, rows);
                        w.norm(*norm).prepare(ctx, rows, shared, own, first)?
                    }
                    (None, Some(packed)) if *packed_before => first.prepare_again(ctx, packed)?,
                    (None, _) => first.prepare(ctx, rows)?,
                };
                if let Some((name, _)) = norm {
                    self.show(ctx, name, x.rows())?;
                }
                if products[0].name != phase.name {
                    x = self.show_unfused(ctx, products, x)?;
                }
                return self.products(ctx, products, *gated, *residual, x).map(Some);
            }
            Op::Attend { queries, new, cache, heads, norms, angles, mask, out, gather } => {
                let keys = self.keys(*cache, phase.rows);
                let (causal, window) = (mask.causal, mask.window);
                let mask = AttentionMask { causal, window, bias: mask.bias.map(|slot| w.bias(slot)) };
                let norms = norms.as_ref().map(|both| both.each_ref().map(|(_, slot)| w.norm(*slot)));
                let preparation = Preparation { norms, angles: angles.map(|angles| views.rows(angles)) };
                let attention = Attention { heads: *heads, preparation, mask };
                let (queries, out) = (self.part(*queries), views.rows(*out));
                if self.narrowed {
                    gather.iter().for_each(|&(from, to)| self.gather(ctx, views.rows(from), views.rows(to)));
                }
                match new.map(|both| both.map(|part| self.part(part))) {
                    None => attention.attend(ctx, keys, queries, out),
                    Some([keys_, values]) => {
                        let new = KeysValues { keys: keys_, values };
                        if out.rows() == 0 {
                            attention.append(ctx, keys, new);
                        } else {
                            attention.append_and_attend(ctx, keys, new, queries, out)?;
                        }
                    }
                }
            }
            Op::Keep { keys_values, layer, heads } => {
                let [keys, values] = keys_values.map(|part| self.part(part));
                let (shape, batch) = (self.executor.memory, &self.plan.memories);
                let at = Keys { shape, layer: *layer, batch, wanted: None };
                let attention = Attention {
                    heads: *heads,
                    preparation: Preparation::default(),
                    mask: AttentionMask::ALL,
                };
                attention.append(ctx, at, KeysValues { keys, values });
                // What was packed is still there.
                return Ok(packed);
            }
            Op::Norm { x, norm, out } => w.norm(*norm).forward(ctx, views.rows(*x), views.rows(*out)),
            Op::Head { x, norm, linear } => {
                let (rows, head) = (views.rows(*x), w.linear(*linear));
                let prepare = |rows: Rows<'s>| match norm {
                    Some((_, norm)) => {
                        let (shared, own) = self.room_for_norm(ctx, rows);
                        w.norm(*norm).prepare(ctx, rows, shared, own, head)
                    }
                    None => head.prepare(ctx, rows),
                };
                match self.out {
                    Out::Logits(out) => {
                        let x = prepare(rows)?;
                        if let Some((name, _)) = norm {
                            self.show(ctx, name, x.rows())?;
                        }
                        out.write(ctx, head, x, views.logits());
                    }
                    Out::Scores(out) => out.write(ctx, head, rows, prepare, views.logits())?,
                }
            }
        }
        Ok(None)
    }

    /// The products of a linear phase; returns the input as the last one read it.
    fn products<'s>(
        &'s self,
        ctx: &Context<'_>,
        products: &[Product<Operand>],
        gated: bool,
        residual: Option<Operand>,
        mut x: Prepared<'s>,
    ) -> Result<Prepared<'s>, Stop> {
        let (w, views) = (self.executor.weights, &self.views);
        let residual = residual.map(|operand| views.rows(operand));
        let then = |p: &Product<Operand>| Epilogue {
            activation: p.activation,
            residual,
            round_output: p.round_output,
        };
        if let ([gate, up], true) = (products, gated) {
            let (wi, out) = (w.linear(up.linear), views.rows(up.out));
            let (first, gates) = (w.linear(gate.linear), views.rows(gate.out));
            // Where both read the same input, a member multiplies the two halves of a piece while they are near.
            let together = wi.takes(ctx, x);
            if !together {
                first.forward(ctx, x, gates, then(gate));
                // A barrier: whoever multiplies sees the gates.
                x = wi.prepare_again(ctx, x)?;
            }
            for piece in wi.pieces(ctx, x) {
                if together {
                    first.product(ctx, &piece, x, gates, then(gate));
                }
                wi.product(ctx, &piece, x, out, then(up));
                gates.multiply(ctx, out, &piece);
            }
            return Ok(x);
        }
        for product in products {
            let linear = w.linear(product.linear);
            x = linear.prepare_again(ctx, x)?;
            linear.forward(ctx, x, views.rows(product.out), then(product));
        }
        Ok(x)
    }

    /// Room for normed rows: common to all members, and this member's alone.
    fn room_for_norm(&self, ctx: &Context<'_>, x: Rows<'_>) -> (Rows<'_>, Rows<'_>) {
        (self.views.normed(x.rows(), x.width()), self.views.private(ctx.member.index(), x.width()))
    }

    /// Rows and first column of queries, keys or values.
    fn part(&self, part: Part<Operand>) -> (Rows<'_>, usize) {
        (self.views.rows(part.of), part.from)
    }

    /// The keys that some rows look at.
    fn keys(&self, cache: Cache, which: Which) -> Keys<'_> {
        let (shape, layer) = match cache {
            Cache::Own(layer) => (self.executor.own, layer),
            Cache::Source => (self.executor.own, 0),
            Cache::Memory(layer) => (self.executor.memory, layer),
        };
        let (batch, wanted) = self.plan.looked_at(cache, which);
        Keys { shape, layer, batch, wanted }
    }

    /// Copies this member's share of the wanted rows.
    fn gather(&self, ctx: &Context<'_>, from: Rows<'_>, to: Rows<'_>) {
        for i in ctx.member.share(self.plan.wanted.len()) {
            // SAFETY: nobody writes the rows of `from` in this phase, and row `i` of `to` is this member's alone.
            unsafe { to.row_mut(i).copy_from_slice(from.row(self.plan.wanted[i])) };
        }
    }

    /// Shows rows under a name, where a trace wants them.
    fn show(&self, ctx: &Context<'_>, name: &str, rows: Rows<'_>) -> Result<(), Stop> {
        self.inputs.trace.map_or(Ok(()), |trace| trace.show(ctx, name, rows))
    }

    /// For a trace alone: products with their biases, before what is fused behind them. Returns the input for the first one.
    fn show_unfused<'s>(
        &'s self,
        ctx: &Context<'_>,
        products: &[Product<Operand>],
        mut x: Prepared<'s>,
    ) -> Result<Prepared<'s>, Stop> {
        if self.inputs.trace.is_none() {
            return Ok(x);
        }
        let w = self.executor.weights;
        for product in products {
            let (linear, out) =
                (w.linear(product.linear), self.views.unfused(x.rows().rows(), product.out.width));
            x = linear.prepare_again(ctx, x)?;
            linear.forward(ctx, x, out, Epilogue::NOTHING);
            ctx.member.barrier()?;
            self.show(ctx, &product.name, out)?;
        }
        w.linear(products[0].linear).prepare_again(ctx, x)
    }

    /// Shows what a phase has made, where a trace wants it.
    fn show_results(&self, ctx: &Context<'_>, phase: &Phase<Operand>) -> Result<(), Stop> {
        match &phase.op {
            Op::Embed { angles, out, .. } => {
                if let Some((_, angles)) = angles {
                    self.show(ctx, "rotary_emb", self.views.rows(*angles))?;
                }
                self.show(ctx, &phase.name, self.views.rows(*out))
            }
            Op::Attend { out, .. } | Op::Norm { out, .. } => {
                self.show(ctx, &phase.name, self.views.rows(*out))
            }
            Op::Linear { products, gated, .. } => {
                self.show(ctx, &phase.name, self.views.rows(products[0].out))?;
                let others = if *gated { &[] } else { &products[1..] };
                others.iter().try_for_each(|p| self.show(ctx, &p.name, self.views.rows(p.out)))
            }
            Op::Head { .. } => self.show(ctx, &phase.name, self.views.logits()),
            Op::Keep { .. } => Ok(()),
        }
    }
}
