//! What a vector can do: sixteen f32 lanes, the width of a weight panel, on every instruction set.
//!
//! Every algorithm of this module tree is written once over [`Lanes`]; an ISA file only says how sixteen lanes are held
//! (one register, two, or an array). Sums across lanes follow one fixed tree, so that they are the same bits in every
//! table; sums along k are made by the caller, one accumulator per lane, ascending.

/// Number of lanes, and of outputs in a weight panel.
pub const WIDTH: usize = 16;

/// Rows and columns that [`Lanes::transpose`] exchanges: as many floats as the smallest vector holds.
pub const QUAD: usize = 4;

/// Sixteen f32 lanes of one instruction set.
///
/// # Safety
/// Every function may use instructions of the implementing instruction set: call them only where the CPU has it, and,
/// for speed, from a function compiled for it. Pointers need room for the lanes they touch and no alignment.
#[allow(clippy::missing_safety_doc, reason = "one contract for all functions, stated on the trait")]
#[allow(missing_docs, reason = "the names are the definitions")]
pub unsafe trait Lanes: Copy + 'static {
    /// Sixteen lanes.
    type F: Copy;
    /// Rows of a tile: accumulators that the registers hold.
    const ROWS: usize;
    /// Rows of a tile that reads them where they lie and widens two vectors of weights for every line.
    const WIDENED_ROWS: usize;
    /// Panels of a tile, side by side: 1 or 2.
    const PANELS: usize;
    /// Whether [`Lanes::dot_bytes`] is exact for all bytes and as fast as it can be; weights of eight bits are widened to sixteen
    /// where it is not.
    const DOTS_BYTES: bool;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: where one is NaN, `b`.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: where one is NaN, `b`.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The bits that differ.
    unsafe fn xor(a: Self::F, b: Self::F) -> Self::F;
    /// Lanes as words of the Mersenne Twister: `middle` with the bits changed that differ in what `word` and the one that follows it
    /// are twisted to (see `mix` in `twister.rs`).
    unsafe fn twist(word: Self::F, following: Self::F, middle: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the instruction set can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Nearest integer, ties to even, for |a| < 2^22.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for lanes holding whole numbers in -126..=127; anything for a NaN.
    unsafe fn pow2(n: Self::F) -> Self::F;
    /// `a < b ? yes : no` by lane; a NaN compares false.
    unsafe fn select_lt(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// Sixteen f16 side by side, widened.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// A line of sixteen bf16 pairs (even k in the low half of a lane): (even, odd) widened.
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F);
    /// The bf16 dot of one line of pairs with one pair of activations (even k in the low half): per lane, the odd
    /// product is added first, then the even one, each as a fused multiply-add (what `vdpbf16ps` does).
    unsafe fn dot_bf16(acc: Self::F, line: *const u16, pair: u32) -> Self::F;
    /// Lanes as i32, each plus the products of its four bytes: those of `u` are unsigned, those of `s` signed. No sum saturates
    /// where [`Lanes::DOTS_BYTES`] says so, and otherwise where the unsigned ones are below 128.
    unsafe fn dot_bytes(acc: Self::F, u: Self::F, s: Self::F) -> Self::F;
    /// Lanes as i32, each plus the products of its two i16.
    unsafe fn dot_pairs(acc: Self::F, a: Self::F, b: Self::F) -> Self::F;
    /// Four signed bytes of every lane as i16: the first and the third, the second and the fourth.
    unsafe fn widen_bytes(v: Self::F) -> (Self::F, Self::F);
    /// Bytes of every lane as their low and their high four bits.
    unsafe fn nibbles(v: Self::F) -> (Self::F, Self::F);
    /// Lanes that hold i32 as f32, rounded to the nearest, ties to even.
    unsafe fn to_float(v: Self::F) -> Self::F;
    /// `a - b` of lanes that hold i32.
    unsafe fn sub_integers(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b` of lanes that hold i32.
    unsafe fn mul_integers(a: Self::F, b: Self::F) -> Self::F;
    /// Writes lanes that hold whole numbers from -128 to 255 as bytes.
    unsafe fn store_bytes(p: *mut u8, v: Self::F);
    /// Every lane rounded to bf16, ties to even; a NaN stays one.
    unsafe fn round_bf16(v: Self::F) -> Self::F;
    /// Sixteen floats as eight words of bf16 pairs, the first of a pair in the low half.
    unsafe fn pair_bf16(p: *const f32, out: *mut f32);
    /// Words of bf16 pairs, `low` in the low half, both rounded as by [`Lanes::round_bf16`].
    unsafe fn join_bf16(low: Self::F, high: Self::F) -> Self::F;
    /// Four floats of four rows, `stride` apart, as four rows of four floats, `step` apart.
    unsafe fn transpose(from: *const f32, stride: usize, out: *mut f32, step: usize);
    /// Brings the line at `p` towards the core; never faults.
    unsafe fn prefetch(p: *const u8);
    /// Brings the line at `p` into the second level; never faults.
    unsafe fn prefetch_near(p: *const u8);

    /// Brings the line at `p` towards the core, to be written; never faults.
    unsafe fn prefetch_write(p: *const u8);

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn to_array(v: Self::F) -> [f32; WIDTH] {
        let mut out = [0.0; WIDTH];
        // SAFETY: the array has room for sixteen lanes; the rest is the trait's contract.
        unsafe { Self::store(out.as_mut_ptr(), v) };
        out
    }
    /// Lanes from an array.
    #[inline(always)]
    unsafe fn from_array(a: [f32; WIDTH]) -> Self::F {
        // SAFETY: the array holds sixteen lanes; the rest is the trait's contract.
        unsafe { Self::load(a.as_ptr()) }
    }
    /// The first `n` lanes from memory, zeros after them; `n` is 0 to 16.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::F {
        debug_assert!(n <= WIDTH, "a part has at most {WIDTH} lanes");
        let mut a = [0.0; WIDTH];
        // SAFETY: the caller gives `n` readable floats, and `n <= WIDTH`.
        unsafe {
            if n == WIDTH {
                return Self::load(p);
            }
            std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n);
            Self::from_array(a)
        }
    }
    /// Writes the first `n` lanes; `n` is 0 to 16.
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: Self::F, n: usize) {
        debug_assert!(n <= WIDTH, "a part has at most {WIDTH} lanes");
        // SAFETY: the caller gives room for `n` floats, and `n <= WIDTH`.
        unsafe {
            let a = Self::to_array(v);
            std::ptr::copy_nonoverlapping(a.as_ptr(), p, n);
        }
    }
    /// Sum over the lanes by halves: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        let a = unsafe { Self::to_array(v) };
        let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
        (c[0] + c[2]) + (c[1] + c[3])
    }
    /// Largest lane.
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        // SAFETY: the trait's contract.
        let a = unsafe { Self::to_array(v) };
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Rounds to bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // Both are computed, so that loops over this stay free of branches.
    let (nan, number) = (bits | 0x40_0000, bits.wrapping_add(0x7fff + ((bits >> 16) & 1)));
    ((if x.is_nan() { nan } else { number }) >> 16) as u16
}

/// The f32 with the value of a bf16.
#[inline(always)]
pub fn widen_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
