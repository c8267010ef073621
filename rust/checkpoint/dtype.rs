//! Element types that a checkpoint may hold, named as safetensors names them.

use serde::Deserialize;

/// Type of a tensor's elements.
///
/// The list is that of safetensors 0.8; models accept only [`is_weight`](Self::is_weight) types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Dtype {
    /// One byte, 0 or 1.
    BOOL,
    /// 4-bit float of the OCP microscaling formats.
    F4,
    /// 6-bit float with 2 exponent bits.
    #[serde(rename = "F6_E2M3")]
    F6E2M3,
    /// 6-bit float with 3 exponent bits.
    #[serde(rename = "F6_E3M2")]
    F6E3M2,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// 8-bit float with 5 exponent bits.
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    /// 8-bit float with 4 exponent bits.
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    /// 8-bit power of two.
    #[serde(rename = "F8_E8M0")]
    F8E8M0,
    /// 8-bit float with 4 exponent bits, no negative zero.
    #[serde(rename = "F8_E4M3FNUZ")]
    F8E4M3FNUZ,
    /// 8-bit float with 5 exponent bits, no negative zero.
    #[serde(rename = "F8_E5M2FNUZ")]
    F8E5M2FNUZ,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single precision.
    F32,
    /// Complex number of two single-precision parts.
    C64,
    /// IEEE double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

impl Dtype {
    /// Size of one element in bits.
    pub const fn bits(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::BOOL | Self::U8 | Self::I8 => 8,
            Self::F8E5M2 | Self::F8E4M3 | Self::F8E8M0 | Self::F8E4M3FNUZ | Self::F8E5M2FNUZ => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
        }
    }

    /// Whether a model's weights may be of this type: f32, f16 or bf16, and f64, which is rounded to f32.
    pub const fn is_weight(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// Name as in a safetensors header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BOOL => "BOOL",
            Self::F4 => "F4",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3FNUZ => "F8_E4M3FNUZ",
            Self::F8E5M2FNUZ => "F8_E5M2FNUZ",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::C64 => "C64",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
        }
    }

    /// Bytes of a tensor of this type and shape; `None` when that overflows or ends inside a byte.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
