//! GPT-2 (Radford et al. 2019): embeddings, blocks of attention and feed-forward with norms before them, a head.
//!
//! Letters: `M` rows of the step, `D` width, `V` vocabulary, `W` rows whose logits are wanted. Phases of a block that a barrier
//! separates: qkv | attend | project | widen | narrow. A sequence with more rows than one task of attention takes has one more,
//! between its keys and those who look at them; above 16 rows each product has one, for its packed input; and norms of 9 to 16
//! rows have one.

pub mod config;
pub mod weights;

use std::fmt::Arguments;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::load::Loader;
use super::memory::Cached;
use super::step::{Out, Plan, Spare, Trace, show};
use super::{Architecture, Segment};
use crate::checkpoint::config::ConfigFile;
use crate::error::Result;
use crate::kernels::Activation;
use crate::kv::{Pool, Shape};
use crate::layers::attention::{Keys, KeysValues, Look};
use crate::layers::linear::{Linear, Prepared, Then};
use crate::layers::norm::PRIVATE_ROWS;
use crate::layers::{self, Buffer, Context, Rows, Runtime};
use crate::layers::{embedding, stride};
use crate::packed::{Packed, Storage};
use crate::team::{self, Member, Stop};
use config::Config;
use weights::{Block, Weights};

/// A loaded GPT-2 model.
#[derive(Debug)]
pub struct Gpt2 {
    /// Sizes and switches.
    pub config: Config,
    /// Weights, shared and never written.
    pub weights: Weights,
    /// Kernels and threads.
    pub runtime: Runtime,
    /// Memory of the cache's blocks.
    pub pool: Arc<Pool>,
    states: Spare<State>,
}

/// Activations of one step at a time, reused.
#[derive(Debug, Default)]
struct State {
    residual: [Buffer; 2],
    normed: Buffer,
    qkv: Buffer,
    attended: Buffer,
    inner: Buffer,
    logits: Buffer,
    members: Buffer,
    packed_rows: Buffer,
    unfused: Buffer,
}

/// Logits that a state keeps room for, in floats; more is given back after the step.
const KEEP_LOGITS: usize = 1 << 20;

/// One step's views of a state.
struct Step<'a> {
    plan: &'a Plan<'a>,
    /// `M × D`, before and after attention's residual.
    x: [Rows<'a>; 2],
    /// `M × D`.
    normed: Rows<'a>,
    /// `M × 3 D`: queries, keys, values.
    qkv: Rows<'a>,
    /// `M × D`.
    attended: Rows<'a>,
    /// `M × n_inner`.
    inner: Rows<'a>,
    /// `W × V`.
    logits: Rows<'a>,
    /// One row of working memory per member: its normed rows, then its scratch.
    members: Rows<'a>,
    /// One row of common memory for packed inputs of products.
    packed_rows: Rows<'a>,
    /// Room for a product before its activation or residual, when a trace wants it: `M × max(D, n_inner)`.
    unfused: Rows<'a>,
    /// Where the logits go.
    out: Out,
}

impl Architecture for Gpt2 {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn width(&self) -> usize {
        self.config.n_embd
    }

    fn context_limit(&self) -> Option<usize> {
        Some(self.config.n_positions)
    }

    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn storages(&self) -> Vec<Storage> {
        self.weights.storages().collect()
    }

    fn step_bytes(&self) -> usize {
        self.weights.linears().map(|l| l.weight().bytes()).sum()
    }

    fn embedding(&self) -> &Packed {
        &self.weights.wte
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, Cached>],
        logits: &mut Vec<f32>,
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<()> {
        let (c, limit) = (&self.config, Some(self.config.n_positions));
        super::step::run(batch, c.n_embd, c.vocab_size, limit, logits, |plan, out| {
            let mut state = self.states.take();
            let result = self.step(plan, &mut state, out, cancel, trace);
            state.logits.shrink(KEEP_LOGITS);
            self.states.put(state);
            result
        })
    }
}

impl Gpt2 {
    /// Loads a model; returns the bytes of its matrices, too.
    ///
    /// # Errors
    /// Those of its config and of its weights.
    pub fn load(file: &mut ConfigFile, loader: &mut Loader<'_>, runtime: Runtime) -> Result<(Self, usize)> {
        let config = Config::read(file)?;
        let (weights, bytes) = Weights::load(loader, &config)?;
        let shape = Shape {
            layers: config.n_layer,
            heads: config.n_head,
            head_dim: config.head_dim(),
            bf16: runtime.bf16,
        };
        Ok((Self { config, weights, runtime, pool: Pool::new(shape), states: Spare::default() }, bytes))
    }

    fn step(
        &self,
        plan: &Plan<'_>,
        state: &mut State,
        out: &mut [f32],
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<()> {
        let (c, rows, wanted) = (&self.config, plan.rows, plan.wanted.len());
        let own = PRIVATE_ROWS * stride(c.n_embd);
        let inputs = c.n_embd.max(c.n_inner);
        let scratch = layers::scratch(&self.runtime, inputs, c.head_dim());
        let [x0, x1] = &mut state.residual;
        let traced = if trace.is_some() { rows } else { 0 };
        let s = Step {
            plan,
            x: [x0.rows(rows, c.n_embd)?, x1.rows(rows, c.n_embd)?],
            normed: state.normed.rows(rows.max(wanted), c.n_embd)?,
            qkv: state.qkv.rows(rows, 3 * c.n_embd)?,
            attended: state.attended.rows(rows, c.n_embd)?,
            inner: state.inner.rows(rows, c.n_inner)?,
            logits: state.logits.rows(wanted, c.vocab_size)?,
            members: state.members.rows(self.runtime.threads, own + scratch)?,
            packed_rows: state.packed_rows.rows(1, layers::packed_rows(rows.max(wanted), inputs))?,
            unfused: state.unfused.rows(traced, c.n_embd.max(c.n_inner))?,
            out: Out::new(out),
        };
        team::run(self.runtime.threads, cancel, |member| self.member(member, &s, trace))
    }

    /// What every member of the team does in a step.
    fn member(&self, member: &Member<'_>, s: &Step<'_>, trace: Option<&Trace>) -> Result<(), Stop> {
        let w = &self.weights;
        let memory = s.members.at(member.index(), 0);
        // SAFETY: the row holds the member's normed rows first, and its scratch after them.
        let scratch = unsafe { memory.add(PRIVATE_ROWS * stride(self.config.n_embd)) };
        let ctx = Context { member, runtime: &self.runtime, scratch, packed_rows: s.packed_rows };
        embedding::forward(&ctx, &w.wte, &w.wpe, &s.plan.sources, s.x[0]); // (M, D)
        member.barrier()?;
        show(&ctx, trace, format_args!("x"), s.x[0])?;
        for (i, block) in w.h.iter().enumerate() {
            self.block(&ctx, s, i, block, trace)?;
        }
        // Members agree on the barrier here because all see the same number of wanted rows.
        w.ln_f.gather(&ctx, s.x[0], &s.plan.wanted, s.normed); // (W, D)
        member.barrier()?;
        let last = s.normed.first(s.plan.wanted.len());
        show(&ctx, trace, format_args!("ln_f"), last)?;
        s.out.logits(&ctx, &w.lm_head, last, s.logits)?; // (W, V)
        member.barrier()?;
        show(&ctx, trace, format_args!("lm_head"), s.logits)
    }

    /// One block, from `x[0]` to `x[0]`.
    fn block(
        &self,
        ctx: &Context<'_>,
        s: &Step<'_>,
        i: usize,
        w: &Block,
        trace: Option<&Trace>,
    ) -> Result<(), Stop> {
        let d = self.config.n_embd;
        let keys = Keys { shape: self.pool.shape(), layer: i, batch: &s.plan.batch };
        let private = s.members.window(ctx.member.index(), PRIVATE_ROWS, d);

        let x = w.ln_1.prepare(ctx, s.x[0], s.normed, private, &w.c_attn)?; // (M, D)
        show(ctx, trace, format_args!("h.{i}.ln_1"), x.rows())?;
        w.c_attn.forward(ctx, x, s.qkv, Then::NOTHING); // (M, 3 D)
        ctx.member.barrier()?;
        show(ctx, trace, format_args!("h.{i}.attn.c_attn"), s.qkv)?;
        let new = KeysValues { keys: (s.qkv, d), values: (s.qkv, 2 * d) };
        w.heads.append_and_attend(ctx, keys, Look::CAUSAL, new, s.qkv, s.attended)?; // (M, D)
        ctx.member.barrier()?;
        show(ctx, trace, format_args!("h.{i}.attn.heads"), s.attended)?;
        let attended = w.attn_c_proj.prepare(ctx, s.attended)?;
        self.unfused(ctx, s, &w.attn_c_proj, attended, trace, format_args!("h.{i}.attn.c_proj"))?;
        let then = Then { residual: Some(s.x[0]), ..Then::NOTHING };
        w.attn_c_proj.forward(ctx, attended, s.x[1], then); // (M, D)
        ctx.member.barrier()?;
        show(ctx, trace, format_args!("h.{i}.attn.residual"), s.x[1])?;

        let x = w.ln_2.prepare(ctx, s.x[1], s.normed, private, &w.c_fc)?; // (M, D)
        show(ctx, trace, format_args!("h.{i}.ln_2"), x.rows())?;
        self.unfused(ctx, s, &w.c_fc, x, trace, format_args!("h.{i}.mlp.c_fc"))?;
        let activation = self.config.activation_function;
        w.c_fc.forward(ctx, x, s.inner, Then { activation, feeds: true, ..Then::NOTHING }); // (M, n_inner)
        ctx.member.barrier()?;
        show(ctx, trace, format_args!("h.{i}.mlp.act"), s.inner)?;
        let inner = w.mlp_c_proj.prepare(ctx, s.inner)?;
        self.unfused(ctx, s, &w.mlp_c_proj, inner, trace, format_args!("h.{i}.mlp.c_proj"))?;
        let then = Then { residual: Some(s.x[1]), activation: Activation::Linear, feeds: false };
        w.mlp_c_proj.forward(ctx, inner, s.x[0], then); // (M, D)
        ctx.member.barrier()?;
        show(ctx, trace, format_args!("h.{i}.mlp.residual"), s.x[0])
    }

    /// For a trace alone: the layer's product with its bias, before what is fused behind it.
    fn unfused(
        &self,
        ctx: &Context<'_>,
        s: &Step<'_>,
        layer: &Linear,
        x: Prepared<'_>,
        trace: Option<&Trace>,
        name: Arguments<'_>,
    ) -> Result<(), Stop> {
        if trace.is_none() {
            return Ok(());
        }
        let out = s.unfused.narrow(layer.weight().outputs());
        layer.forward(ctx, x, out, Then::NOTHING);
        ctx.member.barrier()?;
        show(ctx, trace, name, out)
    }
}
