//! Phases of a program as kernels: who reads what, who writes what, how many blocks.

use super::args::{
    AdvanceArgs, AppendArgs, AttendArgs, BestArgs, CacheArgs, EmbedArgs, GatherArgs, HeadsArgs, LinearArgs,
    Look, NormArgs, NormRowsArgs, Preparation, ResultArgs, activation,
};
use super::driver::Function;
use super::gpu::{BLOCK, FEW, Gpu, MANY_SHARED, NARROW_SHARED, tile_floats};
use super::places::{PARTS, Places, stride};
use super::tables::{Counts, List};
use super::weights::{Matrix, Ready};
use crate::error::Result;
use crate::kv::Shape;
use crate::layers::heads::Heads;
use crate::program::{Cache, Op, Operand, Part, Phase, Which};

/// One step's kernels on their way to the stream.
pub(super) struct Launcher<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) places: &'a Places,
    /// Counters of attention.
    pub(super) tickets: u64,
    /// Rows that are computed, and how many of them are wanted.
    pub(super) rows: usize,
    pub(super) wanted: usize,
    pub(super) counts: Counts,
    /// Chunks of keys over the rows' own sequences and over sources, at most.
    pub(super) chunks: [usize; 2],
    /// Whether rows attend in tiles.
    pub(super) tiled: bool,
    /// Whether rows are given as embeddings.
    pub(super) given: bool,
    /// Sizes of the caches of the rows' own sequences or sources, and of what is kept of sources.
    pub(super) own: &'a Shape,
    pub(super) memory: &'a Shape,
}

/// A number of rows, bytes or values as kernels take it.
fn int(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn blocks(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Into how many warps the inputs of an output are divided: by the matrix alone, so that a row's bits depend on nothing else.
fn split(outputs: usize) -> usize {
    match outputs.div_ceil(8) {
        528.. => 1,
        264.. => 2,
        _ => 4,
    }
}

impl Launcher<'_> {
    fn count(&self, which: Which) -> usize {
        if which == Which::All { self.rows } else { self.wanted }
    }

    /// Whether a phase computes anything.
    pub(super) fn takes(&self, phase: &Phase<Operand>) -> bool {
        self.count(phase.rows) > 0 || matches!(phase.op, Op::Attend { new: Some(_), .. })
    }

    /// Any kernel.
    fn launch<A>(
        &self,
        function: &Function,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        args: &A,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: the structures are those of the kernels (their sizes are asserted on both sides); what they point to are places of this
        // step and weights, which live until the stream has been waited for.
        // Every kernel waits for the one in front of it.
        unsafe {
            self.gpu.stream.launch(function, grid.map(blocks), block, blocks(shared), self.gpu.early, args)
        }
    }

    /// A phase that is not the head.
    pub(super) fn phase(&self, phase: &Phase<Operand>, ready: &Ready) -> Result<()> {
        let rows = self.count(phase.rows);
        match (&phase.op, ready) {
            (Op::Embed { angles, out, .. }, ready) => {
                self.embed(ready, *out, angles.map(|(_, angles)| angles), rows)
            }
            (Op::Linear { x, products, gated, residual, .. }, Ready::Linear { matrix, bias, norm }) => {
                let mut args = LinearArgs { bias: *bias, gated: i32::from(*gated), ..LinearArgs::default() };
                let mut first = 0;
                for (product, to) in std::iter::zip(products, &mut args.results) {
                    let (at, stride) = (self.places.of(product.out), int(stride(product.out.width)));
                    *to = ResultArgs {
                        at,
                        stride,
                        first: int(first),
                        activation: activation(product.activation),
                    };
                    first += product.out.width;
                }
                args.count = if *gated { 1 } else { int(products.len()) };
                if let Some(residual) = residual {
                    (args.residual, args.residual_stride) =
                        (self.places.of(*residual), int(stride(residual.width)));
                }
                self.product(args, (self.places.of(*x), x.width), *norm, *matrix, rows)
            }
            (
                Op::Attend { queries, new, cache, heads, angles, mask, out, gather, .. },
                Ready::Attend { norms, bias, buckets, reach, count },
            ) => {
                // Where every row is wanted there is one list, which steps on the device go on with.
                let which = if self.wanted < self.rows { phase.rows } else { Which::All };
                let list = List::of(*cache, which);
                let prepare = |norm: NormArgs| Preparation {
                    norm,
                    angles: angles.map_or(0, |angles| self.places.of(angles)),
                    pairs: angles.map_or(0, |angles| int(angles.width / 2)),
                };
                if let Some([keys, values]) = new {
                    self.append(
                        List::of(*cache, Which::All),
                        *cache,
                        *heads,
                        prepare(norms[1]),
                        [*keys, *values],
                    )?;
                }
                if self.wanted < self.rows {
                    for &(from, to) in gather {
                        self.gather(from, to)?;
                    }
                }
                let (queries_at, place) = (self.heads(*queries), list as usize);
                let args = AttendArgs {
                    looks: self.places.table(self.places.tables.looks[place]),
                    cache: self.cache(list, *cache),
                    queries: queries_at,
                    prepare: prepare(norms[0]),
                    bias: *bias,
                    buckets: *buckets,
                    out: self.places.of(*out),
                    partial: self.places.partial,
                    tickets: self.tickets,
                    tiles: self.places.table(self.places.tables.tiles[place]),
                    scale: heads.scale,
                    out_stride: int(stride(out.width)),
                    rows: int(self.counts.looks[place]),
                    heads: int(heads.heads),
                    group: int(heads.group()),
                    d: int(heads.head_dim),
                    causal: i32::from(mask.causal),
                    window: int(mask.window.unwrap_or(0)),
                    reach: int(*reach),
                    bucket_count: int(*count),
                    chunks: int(self.chunks_of(list)),
                };
                self.attend(list, *heads, &args)
            }
            (Op::Keep { keys_values, layer, heads }, _) => {
                let cache = Cache::Memory(*layer);
                self.append(List::Memory, cache, *heads, Preparation::default(), *keys_values)
            }
            (Op::Norm { x, out, .. }, Ready::Norm(norm)) => {
                self.norm((self.places.of(*x), x.width), self.places.of(*out), *norm, rows)
            }
            // What is made ready is made of the same phase.
            _ => Ok(()),
        }
    }

    /// The head of `rows` wanted rows from `first` on, into the first places of the logits.
    pub(super) fn head(
        &self,
        phase: &Phase<Operand>,
        ready: &Ready,
        first: usize,
        rows: usize,
    ) -> Result<()> {
        let (Op::Head { x, .. }, Ready::Linear { matrix, bias, norm }) = (&phase.op, ready) else {
            return Ok(());
        };
        let at = self.places.of(*x) + (first * stride(x.width) * 4) as u64;
        let mut args = LinearArgs { bias: *bias, count: 1, ..LinearArgs::default() };
        args.results[0] =
            ResultArgs { at: self.places.logits, stride: int(matrix.outputs), ..ResultArgs::default() };
        self.product(args, (at, x.width), *norm, *matrix, rows)
    }

    fn embed(&self, ready: &Ready, out: Operand, angles: Option<Operand>, rows: usize) -> Result<()> {
        let Ready::Embed { table, learned, inverse, inverse_long, factor, pairs } = *ready else {
            return Ok(());
        };
        let (tables, at) = (&self.places.tables, |table| self.places.table(table));
        let args = EmbedArgs {
            ids: at(tables.ids),
            positions: at(tables.positions),
            is_long: at(tables.is_long),
            table: table.at,
            given: if self.given { self.places.given } else { 0 },
            learned,
            inverse,
            inverse_long,
            out: self.places.of(out),
            angles: angles.map_or(0, |angles| self.places.of(angles)),
            factor,
            table_stride: int(table.stride),
            width: int(out.width),
            out_stride: int(stride(out.width)),
            rows: int(rows),
            pairs: int(pairs),
        };
        self.launch(&self.gpu.kernels.embed, [rows, 1, 1], BLOCK, 0, &args)
    }

    fn norm(&self, (x, width): (u64, usize), out: u64, norm: NormArgs, rows: usize) -> Result<()> {
        let (stride, width) = (int(stride(width)), int(width));
        let args =
            NormRowsArgs { x, out, norm, x_stride: stride, out_stride: stride, width, rows: int(rows) };
        self.launch(&self.gpu.kernels.norm, [rows.div_ceil(4), 1, 1], BLOCK, 0, &args)
    }

    /// A product of rows at `x`; `args` says what is fused behind it.
    fn product(
        &self,
        mut args: LinearArgs,
        (x, width): (u64, usize),
        norm: NormArgs,
        matrix: Matrix,
        rows: usize,
    ) -> Result<()> {
        let kernels = &self.gpu.kernels;
        (args.x, args.x_stride, args.w, args.w_stride) =
            (x, int(stride(width)), matrix.at, int(matrix.stride));
        (args.rows, args.inputs, args.outputs) = (int(rows), int(matrix.inputs), int(matrix.outputs));
        if rows <= FEW {
            args.norm = norm;
            let (which, split) = (rows.max(1).next_power_of_two().ilog2() as usize, split(matrix.outputs));
            args.split = int(split);
            // A warp has four times sixteen bytes of each output under way.
            let chunk_bytes = 32 * 4 * 16 * split;
            let grid = [matrix.outputs.div_ceil(8 / split), 1, 1];
            return self.launch(&kernels.few[which], grid, BLOCK, chunk_bytes << which, &args);
        }
        if norm.kind != 0 {
            self.norm((x, width), self.places.normed, norm, rows)?;
            args.x = self.places.normed;
        }
        let grid = |outputs: usize| [matrix.outputs.div_ceil(outputs), rows.div_ceil(64), 1];
        let tiles = grid(64)[0] * grid(64)[1];
        match &kernels.narrow {
            None => self.launch(&kernels.many, grid(64), 256, 0, &args),
            // Tiles of both sizes form the same sums, so the GPU may decide.
            Some(narrow) if tiles < self.gpu.device.multiprocessors() as usize => {
                self.launch(narrow, grid(16), BLOCK, NARROW_SHARED as usize, &args)
            }
            Some(_) => self.launch(&kernels.many, grid(64), BLOCK, MANY_SHARED as usize, &args),
        }
    }

    fn heads(&self, part: Part<Operand>) -> HeadsArgs {
        let at = self.places.of(part.of) + (part.from * 4) as u64;
        HeadsArgs { at, stride: int(stride(part.of.width)) }
    }

    fn cache(&self, list: List, cache: Cache) -> CacheArgs {
        let (shape, layer) = match cache {
            Cache::Own(layer) => (self.own, layer),
            Cache::Source => (self.own, 0),
            Cache::Memory(layer) => (self.memory, layer),
        };
        let next = usize::from(shape.heads > 1);
        let offset = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        CacheArgs {
            blocks: self.places.table(self.places.tables.blocks(list)),
            keys: offset(shape.keys(layer, 0)),
            values: offset(shape.values(layer, 0)),
            head: offset(shape.keys(layer, next) - shape.keys(layer, 0)),
        }
    }

    fn chunks_of(&self, list: List) -> usize {
        self.chunks[usize::from(matches!(list, List::Memory | List::MemoryWanted))]
    }

    fn append(
        &self,
        list: List,
        cache: Cache,
        heads: Heads,
        prepare: Preparation,
        [keys, values]: [Part<Operand>; 2],
    ) -> Result<()> {
        let rows = self.counts.looks[list as usize];
        let args = AppendArgs {
            looks: self.places.table(self.places.tables.looks[list as usize]),
            cache: self.cache(list, cache),
            keys: self.heads(keys),
            values: self.heads(values),
            prepare,
            rows: int(rows),
            heads: int(heads.kv_heads),
            d: int(heads.head_dim),
        };
        let grid = [(rows * heads.kv_heads).div_ceil(4), 1, 1];
        self.launch(&self.gpu.kernels.append, grid, BLOCK, 4 * heads.head_dim * size_of::<f32>(), &args)
    }

    fn attend(&self, list: List, heads: Heads, args: &AttendArgs) -> Result<()> {
        let (kernels, place) = (&self.gpu.kernels, list as usize);
        if self.tiled {
            let (tiles, shared) = (self.counts.tiles[place], tile_floats(heads.head_dim) * size_of::<f32>());
            return self.launch(&kernels.attend_tile, [tiles, heads.heads, 1], BLOCK, shared, args);
        }
        let grid = [self.counts.looks[place], heads.heads, self.chunks_of(list)];
        self.launch(&kernels.attend_rows, grid, BLOCK, 0, args)
    }

    fn gather(&self, from: Operand, to: Operand) -> Result<()> {
        let args = GatherArgs {
            from: self.places.of(from),
            to: self.places.of(to),
            wanted: self.places.table(self.places.tables.wanted),
            from_stride: int(stride(from.width)),
            to_stride: int(stride(to.width)),
            width: int(from.width),
            rows: int(self.wanted),
        };
        self.launch(&self.gpu.kernels.gather, [self.wanted, 1, 1], BLOCK, 0, &args)
    }

    /// The choice of every row's largest logit, and what the next step needs of it.
    pub(super) fn choose(&self, vocab: usize) -> Result<()> {
        let (kernels, places, rows) = (&self.gpu.kernels, self.places, self.rows);
        let (values, best) = (places.best, places.best + (rows * PARTS * 4) as u64);
        let args =
            BestArgs { logits: places.logits, values, ids: best, stride: int(vocab), vocabulary: int(vocab) };
        self.launch(&kernels.best, [rows, PARTS, 1], BLOCK, 0, &args)?;
        let at = |table| places.table(table);
        let args = AdvanceArgs {
            values,
            best,
            chosen: at(places.tables.chosen),
            step: at(places.tables.step),
            ids: at(places.tables.ids),
            positions: at(places.tables.positions),
            looks: at(places.tables.looks[List::Own as usize]),
            rows: int(rows),
        };
        // A warp for each row, as long as a block has some.
        self.launch(&kernels.advance, [1, 1, 1], 32 * blocks(rows.min(32)), 0, &args)
    }
}

const _: () = assert!(size_of::<Look>() == 5 * 4, "tables write looks as five words");
