//! Numerics of one operation at a time: one thread, pointers and sizes in, no allocation, no threads.
//!
//! An algorithm is written once over [`lanes::Lanes`]; the tables below instantiate it per instruction set. This
//! directory knows nothing of models, sequences or threads.

mod activation;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod cpu;
mod formats;
mod grouped;
pub mod lanes;
mod math;
mod matmul;
mod norm;
mod portable;
pub mod probe;
mod quantize;
mod rows;
mod scans;
mod scores;
mod tile;
mod twister;

use std::sync::OnceLock;

pub use activation::{Activation, EpilogueArgs, Scales};
pub use attention::{Attention, Bias, CHUNK, Visible, scratch as attention_scratch};
pub use cache::{AppendKv, BLOCK, CacheProducts, clear, key_bytes, value_bytes};
pub use cpu::{Cpu, Family, identify};
pub use formats::{
    BFLOAT16, Element, FLOAT16, FLOAT32, Format, INT4, INT8, LINE, Numbers, Orientation, PAIR, Panels, TYPES,
    WeightType, Words, of_element, panel_offset, row_room,
};
pub use lanes::WIDTH;
pub use matmul::{Matmul, Prefetch, Tuning};
pub use norm::Norm;
pub use rows::{FEW_ROWS, InputLayout, Pack};
pub use scans::{BLOCK_WORDS, Scans, TWIST_MATRIX, WINDOW_BITS, WindowSums, window_offset};

use crate::error::{Error, Result};
use formats::{Bf16, Bf16Dot, F16, F32, FORMATS, Int8, Int8Groups, Nibbles, Product, each_kind};

/// A finishing routine of a tile, see [`EpilogueArgs`].
type Finish = unsafe fn(*mut f32, usize, usize, usize, &EpilogueArgs);

/// The kernels of one instruction set. Handed out only where the CPU has it.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    /// Name as `FASTDECODE_ISA` takes it.
    pub name: &'static str,
    /// Whether the bf16 dot is one instruction.
    pub has_bf16_dot: bool,
    detected: fn() -> bool,
    /// By [`Format`], in the order of its variants.
    matmul: [unsafe fn(&Matmul); FORMATS],
    /// By [`Format`]: how a product wants so many rows.
    form: [fn(usize, usize) -> InputLayout; FORMATS],
    pack: unsafe fn(&Pack),
    finish: Finish,
    layer_norm: unsafe fn(&Norm),
    rms_norm: unsafe fn(&Norm),
    /// f32 cache, bf16 cache.
    put: [unsafe fn(&AppendKv); 2],
    /// By [`CacheProducts`].
    attention: [unsafe fn(&Attention<'_>); 3],
    multiply: unsafe fn(*mut f32, *const f32, usize, bool),
    probe: probe::Probes,
    scans: &'static Scans,
}

/// Wraps a shared algorithm in a function compiled for the features of one table.
macro_rules! shim {
    ([$($attr:meta),*] $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?, $body:expr) => {
        $(#[$attr])*
        unsafe fn $name($($arg: $ty),*) $(-> $out)? {
            // SAFETY: handed on from the caller; a table is handed out only where its features are.
            unsafe { $body }
        }
    };
}

/// As `shim`, for what is safe once the features are there.
macro_rules! scan {
    ([$($attr:meta),*] $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?, $body:expr) => {
        $(#[$attr])*
        fn $name($($arg: $ty),*) $(-> $out)? {
            $body
        }
    };
}

/// The products of one instruction set: for each kind a function, and how it wants its rows.
macro_rules! products {
    (($lanes:ty, $attrs:tt); $($kind:ident),*) => {
        const MATMUL: [unsafe fn(&Matmul); FORMATS] = [$({
            shim!($attrs product(job: &Matmul), <$kind as Product<$lanes>>::product(job));
            product
        }),*];
        const FORM: [fn(usize, usize) -> InputLayout; FORMATS] = [$(<$kind as Product<$lanes>>::form),*];
    };
}

/// The table of one instruction set.
macro_rules! table {
    ($module:ident, $lanes:ty, $name:literal, bf16: $bf16:literal, $detected:expr, $attrs:tt) => {
        mod $module {
            use super::*;
            each_kind!(products!(($lanes, $attrs)));
            shim!($attrs pack(j: &Pack), rows::pack::<$lanes>(j));
            shim!($attrs finish(c: *mut f32, stride: usize, rows: usize, cols: usize, e: &EpilogueArgs),
                activation::epilogue::<$lanes>(c, stride, rows, cols, e));
            shim!($attrs layer_norm(j: &Norm), norm::layer_norm::<$lanes>(j));
            shim!($attrs rms_norm(j: &Norm), norm::rms_norm::<$lanes>(j));
            shim!($attrs put_f32(j: &AppendKv), cache::put_f32::<$lanes>(j));
            shim!($attrs put_bf16(j: &AppendKv), cache::put_bf16::<$lanes>(j));
            shim!($attrs attention_f32(j: &Attention<'_>), attention::attention::<$lanes, F32>(j));
            shim!($attrs attention_bf16(j: &Attention<'_>), attention::attention::<$lanes, Bf16>(j));
            shim!($attrs attention_dot(j: &Attention<'_>), attention::attention::<$lanes, Bf16Dot>(j));
            shim!($attrs multiply(g: *mut f32, u: *const f32, n: usize, round: bool),
                activation::multiply::<$lanes>(g, u, n, round));
            shim!($attrs fma(n: usize) -> f32, probe::fma::<$lanes>(n));
            shim!($attrs dot(n: usize) -> f32, probe::dot::<$lanes>(n));
            shim!($attrs integers(n: usize) -> f32, probe::integers::<$lanes>(n));
            shim!($attrs read(p: *const f32, n: usize, ahead: usize) -> f32, probe::read::<$lanes>(p, n, ahead));
            shim!($attrs maximum(s: &[f32]) -> f32, scores::maximum::<$lanes>(s));
            shim!($attrs maxima(s: &[f32], run: usize, m: &mut [f32]) -> bool,
                scores::maxima::<$lanes>(s, run, m));
            scan!($attrs position(s: &[f32], score: f32) -> usize, scores::position(s, score));
            scan!($attrs exponentiate(v: &mut [f32], m: f32), scores::exponentiate(v, m));
            scan!($attrs sum_of_exponentials(v: &[f32], m: f32) -> f64, scores::sum_of_exponentials(v, m));
            scan!($attrs sum_in_double(v: &[f32], m: f32) -> f64, scores::sum_in_double(v, m));
            scan!($attrs sum(v: &[f32]) -> f64, scores::sum(v));
            scan!($attrs divide(v: &mut [f32], by: f32), scores::divide(v, by));
            scan!($attrs subtract(v: &mut [f32], a: f32, b: f32), scores::subtract(v, a, b));
            shim!($attrs twist(w: &mut [u32; BLOCK_WORDS], times: u64), twister::twist::<$lanes>(w, times));
            shim!($attrs follow(s: &mut WindowSums), twister::follow::<$lanes>(s));
            shim!($attrs add_windows(s: &WindowSums, o: &[u16], w: &mut [u32; BLOCK_WORDS]),
                twister::add_windows::<$lanes, PARTS>(s, o, w));
            /// Vectors that one pass over the windows keeps in registers.
            const PARTS: usize = if <$lanes as lanes::Lanes>::ROWS == 12 { 13 } else { 3 };

            pub(super) const TABLE: Kernels = Kernels {
                name: $name,
                has_bf16_dot: $bf16,
                detected: $detected,
                matmul: MATMUL,
                form: FORM,
                pack,
                finish,
                layer_norm,
                rms_norm,
                put: [put_f32, put_bf16],
                attention: [attention_f32, attention_bf16, attention_dot],
                multiply,
                probe: probe::Probes {
                    fma,
                    dot,
                    integers,
                    in_lane: probe::in_lane::<$lanes>(),
                    read,
                    chains: <$lanes as lanes::Lanes>::ROWS,
                },
                scans: &Scans {
                    maximum,
                    maxima,
                    position,
                    exponentiate,
                    sum_of_exponentials,
                    sum_in_double,
                    sum,
                    divide,
                    subtract,
                    twist,
                    follow,
                    add_windows,
                },
            };
        }
    };
}

table!(portable_table, portable::Portable, "portable", bf16: false, || true, []);
table!(fused_table, portable::Fused, "portable", bf16: false, || true, []);
#[cfg(target_arch = "x86_64")]
table!(avx2_table, avx2::Avx2, "avx2", bf16: false, avx2::detected, [target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
table!(avx512_table, avx512::Avx512, "avx512", bf16: false, avx512::detected,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);
/// A table that differs from another in how it forms products of integers.
#[cfg(target_arch = "x86_64")]
macro_rules! integer_table {
    ($module:ident, $of:ident, $lanes:ty, $name:literal, $detected:expr, [$($attr:meta),*]) => {
        mod $module {
            use super::*;
            shim!([$($attr),*] int8(j: &Matmul), <Int8 as Product<$lanes>>::product(j));
            shim!([$($attr),*] int8_groups(j: &Matmul), <Int8Groups as Product<$lanes>>::product(j));
            shim!([$($attr),*] integers(n: usize) -> f32, probe::integers::<$lanes>(n));
            shim!([$($attr),*] nibbles(j: &Matmul), <Nibbles as Product<$lanes>>::product(j));
            pub(super) const TABLE: Kernels = {
                let mut table = Kernels { name: $name, detected: $detected, ..$of::TABLE };
                table.probe.integers = integers;
                table.probe.in_lane = probe::in_lane::<$lanes>();
                table.matmul[Format::Int8 as usize] = int8;
                table.form[Format::Int8 as usize] = <Int8 as Product<$lanes>>::form;
                table.matmul[Format::Int8Groups as usize] = int8_groups;
                table.form[Format::Int8Groups as usize] = <Int8Groups as Product<$lanes>>::form;
                table.matmul[Format::Nibbles as usize] = nibbles;
                table.form[Format::Nibbles as usize] = <Nibbles as Product<$lanes>>::form;
                table
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
integer_table!(
    avx_vnni_table,
    avx2_table,
    avx2::AvxVnni,
    "avxvnni",
    avx2::detected_vnni,
    [target_feature(enable = "avxvnni,avx2,fma,f16c")]
);
#[cfg(target_arch = "x86_64")]
integer_table!(
    avx512_vnni_table,
    avx512_table,
    avx512::Avx512Vnni,
    "avx512vnni",
    avx512::detected_vnni,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
);
#[cfg(target_arch = "x86_64")]
table!(avx512_bf16_table, avx512::Avx512Bf16, "avx512bf16", bf16: true, avx512::detected_bf16,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]);

/// Every table of this architecture, the best first.
#[cfg(target_arch = "x86_64")]
const TABLES: [Kernels; 6] = [
    avx512_bf16_table::TABLE,
    avx512_vnni_table::TABLE,
    avx512_table::TABLE,
    avx_vnni_table::TABLE,
    avx2_table::TABLE,
    portable_table::TABLE,
];
/// Every table of this architecture, the best first.
#[cfg(not(target_arch = "x86_64"))]
const TABLES: [Kernels; 1] = [portable_table::TABLE];

impl Kernels {
    /// Every table that this CPU can run, the best first.
    pub fn available() -> Vec<Self> {
        TABLES.into_iter().filter(|t| (t.detected)()).collect()
    }

    /// The table called `name`.
    ///
    /// # Errors
    /// [`Error::Isa`] when there is none, or this CPU cannot run it.
    pub fn named(name: &str) -> Result<Self> {
        let available = Self::available();
        available.iter().find(|t| t.name == name).copied().ok_or_else(|| Error::Isa {
            requested: name.to_owned(),
            available: available.iter().map(|t| t.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The table that `FASTDECODE_ISA` names, or the best one; decided once per process.
    ///
    /// # Errors
    /// [`Error::Isa`] when the variable names a table that this CPU cannot run.
    pub fn chosen() -> Result<Self> {
        static CHOSEN: OnceLock<std::result::Result<Kernels, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| match std::env::var_os("FASTDECODE_ISA") {
            Some(name) if !name.is_empty() => {
                // A name that is no text names no table, and is told as one.
                let name = name.to_string_lossy().into_owned();
                Self::named(&name).map_err(|_| name)
            }
            _ => Ok(Self::available()[0]),
        });
        match chosen {
            Ok(table) => Ok(*table),
            Err(name) => Self::named(name),
        }
    }

    /// Whether a vector is one register, of which there are 32: tiles have twelve rows.
    pub fn is_wide(&self) -> bool {
        self.probe.chains == 12
    }

    /// How a product of this format wants `m` rows; `group` is that of the weight type.
    pub fn form(&self, format: Format, m: usize, group: usize) -> InputLayout {
        self.form[format as usize](m, group)
    }

    /// Packs rows for products of their form.
    ///
    /// # Safety
    /// The pointers of `job` hold what its fields say, and no other thread touches these tiles.
    pub unsafe fn pack(&self, job: &Pack) {
        // SAFETY: handed on; the table is only handed out where its features are.
        unsafe { (self.pack)(job) }
    }

    /// Runs one product.
    ///
    /// # Safety
    /// The pointers of `job` hold what its fields say, and no other thread touches the outputs.
    pub unsafe fn matmul(&self, format: Format, job: &Matmul) {
        debug_assert!(job.c_stride >= job.panels * WIDTH || job.m <= 1, "rows of the output overlap");
        // SAFETY: handed on; the table is only handed out where its features are.
        unsafe { self.matmul[format as usize](job) }
    }

    /// The routine that finishes a tile, for [`Matmul::finish`].
    pub fn finish(&self) -> Finish {
        self.finish
    }

    /// Layer normalization of one row.
    ///
    /// # Safety
    /// As for [`Kernels::matmul`].
    pub unsafe fn layer_norm(&self, job: &Norm) {
        // SAFETY: handed on.
        unsafe { (self.layer_norm)(job) }
    }

    /// Root-mean-square normalization of one row.
    ///
    /// # Safety
    /// As for [`Kernels::matmul`].
    pub unsafe fn rms_norm(&self, job: &Norm) {
        // SAFETY: handed on.
        unsafe { (self.rms_norm)(job) }
    }

    /// Puts rows of keys and values into a block of the cache; `bf16` says how it is stored.
    ///
    /// # Safety
    /// As for [`Kernels::matmul`]; the rows fit into the block.
    pub unsafe fn put(&self, bf16: bool, job: &AppendKv) {
        debug_assert!(job.token + job.rows <= BLOCK, "a block has {BLOCK} tokens");
        // SAFETY: handed on.
        unsafe { self.put[usize::from(bf16)](job) }
    }

    /// Attention of some rows of one head over a cache.
    ///
    /// # Safety
    /// As for [`Kernels::matmul`].
    pub unsafe fn attention(&self, cache: CacheProducts, job: &Attention<'_>) {
        // SAFETY: handed on.
        unsafe { self.attention[cache as usize](job) }
    }

    /// `gate *= up` for `n` floats, a multiple of 16, rounded to bf16 when asked.
    ///
    /// # Safety
    /// Both pointers hold `n` floats, and no other thread touches them.
    pub unsafe fn multiply(&self, gate: *mut f32, up: *const f32, n: usize, round: bool) {
        // SAFETY: handed on.
        unsafe { (self.multiply)(gate, up, n, round) }
    }

    /// What choosing a token needs.
    pub fn scans(&self) -> &'static Scans {
        self.scans
    }

    /// The scans of the chosen table; the plain ones where `FASTDECODE_ISA` names none that this CPU runs, with which no model
    /// loads.
    pub fn chosen_scans() -> &'static Scans {
        Self::chosen().map_or(portable_table::TABLE.scans, |table| table.scans)
    }

    /// The table that serves a model with matrices of integers in this one's place: one that rounds a product and a sum once.
    #[must_use]
    pub fn for_integers(self) -> Self {
        if self.name == portable_table::TABLE.name { fused_table::TABLE } else { self }
    }

    /// The probes of this table's limits.
    pub fn probes(&self) -> probe::Probes {
        self.probe
    }
}
