//! Elements of a checkpoint's tensors: how a value is stored in a file, before it becomes part of a matrix.

use half::f16;

use crate::kernels::lanes::{round_bf16, widen_bf16};

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// The upper half of a single.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Element {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The name that users know.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Value `i` of little-endian bytes, as f32.
    #[inline(always)]
    fn get(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap_or_default()),
            Self::Bf16 => widen_bf16(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
            Self::F16 => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
        }
    }

    /// `x` rounded to what this type can hold, ties to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => widen_bf16(round_bf16(x)),
            Self::F16 => f16::from_f32(x).to_f32(),
        }
    }

    /// Whether this type holds every finite value of `bytes`, given as `from`, without a change.
    pub fn holds(self, from: Self, bytes: &[u8]) -> bool {
        (0..bytes.len() / from.bytes()).all(|i| {
            let x = from.get(bytes, i);
            self.round(x).to_bits() == x.to_bits() || x.is_nan()
        })
    }

    /// Values of `bytes` as f32.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.bytes()];
        self.widen_into(bytes, 1, &mut values);
        values
    }

    /// Every `step`-th value of `bytes`, from the first on, as f32.
    pub(super) fn widen_into(self, bytes: &[u8], step: usize, values: &mut [f32]) {
        for (i, x) in values.iter_mut().enumerate() {
            *x = self.get(bytes, i * step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_types_are_recognized() {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        assert!(Element::Bf16.holds(Element::F32, &bytes(&[1.5, -0.0, f32::INFINITY])));
        assert!(!Element::Bf16.holds(Element::F32, &bytes(&[1.5, 1.0009766])));
        assert!(Element::F16.holds(Element::F32, &bytes(&[1.5, 1.0009766])));
        assert!(!Element::F16.holds(Element::F32, &bytes(&[70000.0])));
    }
}
