//! Weights of sixteen bits whose lines are widened to two vectors of f32.

/// The kind whose line of weights at `p` is widened as `line` says.
macro_rules! wide_kind {
    ($kind:ty, $p:ident => $line:expr) => {
        impl<L: Lanes> Kind<L> for $kind {
            const STEP: usize = 2;
            const WORDS: usize = 2;
            const WIDEN: bool = true;
            type Line = (L::F, L::F);
            type Widened = super::f32::F32;
            #[inline(always)]
            unsafe fn line(p: *const u8) -> (L::F, L::F) {
                let $p = p.cast::<u16>();
                // SAFETY: handed on; the caller grants the line, the words and the lanes.
                unsafe { $line }
            }
            #[inline(always)]
            unsafe fn apply(acc: L::F, line: (L::F, L::F), x: *const f32, next: usize) -> L::F {
                // SAFETY: handed on; the caller grants the line, the words and the lanes.
                unsafe {
                    let acc = L::fma(L::splat(*x), line.0, acc);
                    L::fma(L::splat(*x.add(next)), line.1, acc)
                }
            }
            #[inline(always)]
            unsafe fn widen(p: *const u8, out: *mut f32, step: usize) {
                // SAFETY: handed on; the caller grants the line, the words and the lanes.
                unsafe {
                    let (even, odd) = <Self as Kind<L>>::line(p);
                    L::store(out, even);
                    L::store(out.add(step), odd);
                }
            }
        }
    };
}
pub(super) use wide_kind;
