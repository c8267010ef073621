//! Pointwise activations, and the epilogue that finishes a tile of a matrix product: bias, activation, residual.
//!
//! Formulas are those of `transformers.activations` 5.24, by their names there.

use super::formats::{LINE, PAIR, SCALE_WORDS};
use super::lanes::{Lanes, WIDTH};
use super::math;

/// An activation without parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `linear`.
    Linear,
    /// `relu`.
    Relu,
    /// `relu2`: relu squared.
    Relu2,
    /// `relu6`: relu, at most 6.
    Relu6,
    /// `leaky_relu`, slope 0.01.
    LeakyRelu,
    /// `gelu`, `gelu_python`: with the error function.
    Gelu,
    /// `gelu_10`: `gelu` clipped to -10..=10.
    Gelu10,
    /// `gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`, `gelu_accurate`: with tanh.
    GeluNew,
    /// `quick_gelu`: `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `silu`, `swish`.
    Silu,
    /// `mish`: `x * tanh(softplus(x))`.
    Mish,
    /// `tanh`.
    Tanh,
    /// `sigmoid`.
    Sigmoid,
    /// `hardswish`: `x * relu6(x + 3) / 6`.
    HardSwish,
    /// `laplace`: `0.5 (1 + erf((x - 0.707107) / (0.282095 sqrt 2)))`.
    Laplace,
    /// `sqrtsoftplus`.
    SqrtSoftplus,
}

/// Names of transformers, each with its activation.
const NAMES: [(&str, Activation); 22] = [
    ("linear", Activation::Linear),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
    ("relu6", Activation::Relu6),
    ("leaky_relu", Activation::LeakyRelu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_10", Activation::Gelu10),
    ("gelu_new", Activation::GeluNew),
    ("gelu_fast", Activation::GeluNew),
    ("gelu_pytorch_tanh", Activation::GeluNew),
    ("gelu_python_tanh", Activation::GeluNew),
    ("gelu_accurate", Activation::GeluNew),
    ("quick_gelu", Activation::QuickGelu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("mish", Activation::Mish),
    ("tanh", Activation::Tanh),
    ("sigmoid", Activation::Sigmoid),
    ("hardswish", Activation::HardSwish),
    ("laplace", Activation::Laplace),
    ("sqrtsoftplus", Activation::SqrtSoftplus),
];

impl Activation {
    /// The activation that transformers calls `name`, or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, a)| *a)
    }

    /// Every name that [`Activation::from_name`] knows, for messages.
    pub fn names() -> String {
        NAMES.map(|(n, _)| n).join(", ")
    }
}

/// By what sums of integers become products: the rows' scales and zero points, and the outputs' scales and sums of weights.
#[derive(Debug, Clone, Copy)]
pub struct Scales {
    /// Scale (f32) and zero point (i32) of the first row; null where sums came with their rows' scales.
    pub(super) rows: *const f32,
    /// Words from one row's scale to the next row's.
    pub(super) step: usize,
    /// The line of the first panel's scales; that of its sums is the panel's next one. Null where sums are products.
    pub(super) columns: *const u8,
    /// Bytes from one pair of panels to the next.
    pub(super) pair_bytes: usize,
}

impl Scales {
    /// Sums are products.
    pub const NONE: Self =
        Self { rows: std::ptr::null(), step: SCALE_WORDS, columns: std::ptr::null(), pair_bytes: 0 };

    /// Sums that lack the outputs' scales alone.
    pub(super) fn of_columns(columns: *const u8, pair_bytes: usize) -> Self {
        Self { columns, pair_bytes, ..Self::NONE }
    }
}

/// What finishes an output: `round(activation(c + bias) + residual)`, each part optional. Sums of integers become f32 first: `c + bias` is
/// then `fma(f32(c - z sums), s scales, bias)` with a row's scale `s` and zero point `z`.
#[derive(Debug, Clone, Copy)]
pub struct EpilogueArgs {
    /// One value per output, padded to whole panels; null for none.
    pub bias: *const f32,
    /// Applied after the bias.
    pub activation: Activation,
    /// Rows added after the activation, padded as the output is; null for none. They are read after the
    /// product was written, so that they lie in another buffer than the output.
    pub residual: *const f32,
    /// Floats from one residual row to the next.
    pub residual_stride: usize,
    /// Whether the result is rounded to bf16 (`compute_dtype="bfloat16"`).
    pub round: bool,
    /// How sums of integers become products; a product sets this itself.
    pub scales: Scales,
}

impl EpilogueArgs {
    /// Leaves the product as it is.
    pub const NONE: Self = Self {
        bias: std::ptr::null(),
        activation: Activation::Linear,
        residual: std::ptr::null(),
        residual_stride: 0,
        round: false,
        scales: Scales::NONE,
    };

    /// Whether there is nothing to do.
    pub(super) fn is_none(&self) -> bool {
        let nothing = self.bias.is_null() && self.residual.is_null() && self.scales.columns.is_null();
        nothing && self.activation == Activation::Linear && !self.round
    }
}

/// One lane-wise function.
trait Function {
    unsafe fn eval<L: Lanes>(x: L::F) -> L::F;
}

macro_rules! function {
    ($name:ident, $lanes:ident, $x:ident => $body:expr) => {
        struct $name;
        impl Function for $name {
            #[inline(always)]
            unsafe fn eval<$lanes: Lanes>($x: $lanes::F) -> $lanes::F {
                // SAFETY: the caller's contract is that of `Lanes`.
                unsafe { $body }
            }
        }
    };
}

/// The identity.
struct Linear;
impl Function for Linear {
    #[inline(always)]
    unsafe fn eval<L: Lanes>(x: L::F) -> L::F {
        x
    }
}

function!(Relu, L, x => L::max(x, L::splat(0.0)));
function!(Relu2, L, x => { let r = L::max(x, L::splat(0.0)); L::mul(r, r) });
function!(Relu6, L, x => L::min(L::max(x, L::splat(0.0)), L::splat(6.0)));
function!(LeakyRelu, L, x => L::select_lt(x, L::splat(0.0), L::mul(x, L::splat(0.01)), x));
function!(Gelu, L, x => {
    let e = math::erf::<L>(L::mul(x, L::splat(std::f32::consts::FRAC_1_SQRT_2)));
    L::mul(L::mul(x, L::splat(0.5)), L::add(L::splat(1.0), e))
});
function!(Gelu10, L, x => {
    let g = Gelu::eval::<L>(x);
    L::min(L::max(g, L::splat(-10.0)), L::splat(10.0))
});
function!(GeluNew, L, x => {
    let cube = L::mul(L::mul(x, x), x);
    let inner = L::mul(L::splat(0.797_884_6), L::fma(L::splat(0.044_715), cube, x));
    L::mul(L::mul(x, L::splat(0.5)), L::add(L::splat(1.0), math::tanh::<L>(inner)))
});
function!(QuickGelu, L, x => L::mul(x, math::sigmoid::<L>(L::mul(x, L::splat(1.702)))));
function!(Silu, L, x => L::mul(x, math::sigmoid::<L>(x)));
function!(Mish, L, x => {
    // With n = e^x (e^x + 2), tanh(ln(1 + e^x)) = n / (n + 2); beyond 20 softplus is the identity in torch, too.
    let e = math::exp::<L>(L::min(L::splat(20.0), x));
    let n = L::mul(e, L::add(e, L::splat(2.0)));
    let y = L::mul(x, L::div(n, L::add(n, L::splat(2.0))));
    L::select_lt(L::splat(20.0), x, x, y)
});
function!(Tanh, L, x => math::tanh::<L>(x));
function!(Sigmoid, L, x => math::sigmoid::<L>(x));
function!(HardSwish, L, x => {
    let r = L::min(L::max(L::add(x, L::splat(3.0)), L::splat(0.0)), L::splat(6.0));
    L::div(L::mul(x, r), L::splat(6.0))
});
/// The mean that transformers gives `laplace`: six digits, not the root itself.
#[allow(clippy::approx_constant, reason = "transformers' own digits")]
const LAPLACE_MEAN: f32 = 0.707_107;
function!(Laplace, L, x => {
    let z = L::div(L::sub(x, L::splat(LAPLACE_MEAN)), L::splat(0.282_095 * std::f32::consts::SQRT_2));
    L::mul(L::splat(0.5), L::add(L::splat(1.0), math::erf::<L>(z)))
});
function!(SqrtSoftplus, L, x => {
    let a = L::to_array(x);
    L::from_array(a.map(|x| if x > 20.0 { x.sqrt() } else { x.exp().ln_1p().sqrt() }))
});

/// Finishes a tile in place: `rows` rows of `cols` outputs (whole panels) at `c`, `stride` floats apart. The pointers of
/// `e` are those of the tile's first output.
///
/// # Safety
/// As for [`Lanes`]; `c`, bias and residual hold the tile.
#[inline(always)]
pub(super) unsafe fn epilogue<L: Lanes>(
    c: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
    e: &EpilogueArgs,
) {
    macro_rules! run {
        ($f:ty) => {
            // SAFETY: handed on from the caller.
            unsafe { finish::<L, $f>(c, stride, rows, cols, e) }
        };
    }
    match e.activation {
        Activation::Linear => run!(Linear),
        Activation::Relu => run!(Relu),
        Activation::Relu2 => run!(Relu2),
        Activation::Relu6 => run!(Relu6),
        Activation::LeakyRelu => run!(LeakyRelu),
        Activation::Gelu => run!(Gelu),
        Activation::Gelu10 => run!(Gelu10),
        Activation::GeluNew => run!(GeluNew),
        Activation::QuickGelu => run!(QuickGelu),
        Activation::Silu => run!(Silu),
        Activation::Mish => run!(Mish),
        Activation::Tanh => run!(Tanh),
        Activation::Sigmoid => run!(Sigmoid),
        Activation::HardSwish => run!(HardSwish),
        Activation::Laplace => run!(Laplace),
        Activation::SqrtSoftplus => run!(SqrtSoftplus),
    }
}

#[inline(always)]
unsafe fn finish<L: Lanes, F: Function>(
    c: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
    e: &EpilogueArgs,
) {
    // SAFETY: the caller grants the tile; `cols` is a multiple of the width.
    unsafe {
        for r in 0..rows {
            for j in (0..cols).step_by(WIDTH) {
                let p = c.add(r * stride + j);
                let mut v = L::load(p);
                if !e.scales.columns.is_null() {
                    let bias = if e.bias.is_null() { L::splat(0.0) } else { L::load(e.bias.add(j)) };
                    v = scaled::<L>(v, &e.scales, r, j / WIDTH, bias);
                } else if !e.bias.is_null() {
                    v = L::add(v, L::load(e.bias.add(j)));
                }
                v = F::eval::<L>(v);
                if !e.residual.is_null() {
                    v = L::add(L::load(e.residual.add(r * e.residual_stride + j)), v);
                }
                if e.round {
                    v = L::round_bf16(v);
                }
                L::store(p, v);
            }
        }
    }
}

/// Sums of integers of row `r` under panel `panel` as products, plus their bias.
#[inline(always)]
unsafe fn scaled<L: Lanes>(sums: L::F, by: &Scales, r: usize, panel: usize, bias: L::F) -> L::F {
    // SAFETY: the caller grants the row's words and the panel's lines.
    unsafe {
        let column = by.columns.add(panel / 2 * by.pair_bytes + panel % 2 * LINE);
        if by.rows.is_null() {
            return L::fma(sums, L::load(column.cast()), bias);
        }
        let row = by.rows.add(r * by.step);
        let zero = L::mul_integers(L::splat(*row.add(1)), L::load(column.add(PAIR).cast()));
        let sums = L::to_float(L::sub_integers(sums, zero));
        L::fma(sums, L::mul(L::splat(*row), L::load(column.cast())), bias)
    }
}

/// `gate *= up` for `n` floats (whole panels), rounded to bf16 when asked; the gate's activation came with its product.
///
/// # Safety
/// As for [`Lanes`]; both pointers hold `n` floats.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes>(gate: *mut f32, up: *const f32, n: usize, round: bool) {
    // SAFETY: the caller grants `n` floats, a multiple of the width.
    unsafe {
        for j in (0..n).step_by(WIDTH) {
            let mut v = L::mul(L::load(gate.add(j)), L::load(up.add(j)));
            if round {
                v = L::round_bf16(v);
            }
            L::store(gate.add(j), v);
        }
    }
}
