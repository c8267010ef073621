//! Which CPU this is, and the sizes that suit its family. Changes speed and, through the choice of the bf16 dot, which
//! instructions serve a compute type; never decided by a timing, so results do not change from run to run.

use super::Kernels;
use super::matmul::{Prefetch, Tuning};

/// A CPU family with measured sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// AMD Zen 1 to 3: two 256-bit FMA, 512 KB of L2.
    Zen,
    /// AMD Zen 4: 512-bit registers on 256-bit units, so the bf16 dot is twice the f32 FMA.
    Zen4,
    /// AMD Zen 5.
    Zen5,
    /// Intel Xeon from Skylake to Sapphire Rapids: two 512-bit FMA; the bf16 dot (without AMX) is half of the f32 FMA.
    Xeon,
    /// Anything else.
    Unknown,
}

/// Name and model of the CPU as the hardware states them.
#[derive(Debug, Clone)]
pub struct Cpu {
    /// Vendor, such as "AuthenticAMD"; empty where unknown.
    pub vendor: String,
    /// Brand string; empty where unknown.
    pub name: String,
    /// Family with its own sizes.
    pub family: Family,
}

#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "cpuid is a safe function from Rust 1.92 on")]
fn cpuid(leaf: u32) -> [u32; 4] {
    // SAFETY: every x86-64 CPU has the instruction.
    let r = unsafe { std::arch::x86_64::__cpuid(leaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Reads the CPU's identity.
#[cfg(target_arch = "x86_64")]
pub fn identify() -> Cpu {
    let text = |words: &[u32]| -> String {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).filter(|b| *b != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    let [_, b, c, d] = cpuid(0);
    let vendor = text(&[b, d, c]);
    let eax = cpuid(1)[0];
    let base = (eax >> 8) & 0xf;
    let family = if base == 0xf { base + ((eax >> 20) & 0xff) } else { base };
    let model = ((eax >> 4) & 0xf) | ((eax >> 12) & 0xf0);
    let brand = if cpuid(0x8000_0000)[0] >= 0x8000_0004 {
        text(&(2..=4).flat_map(|i| cpuid(0x8000_0000 + i)).collect::<Vec<_>>())
    } else {
        String::new()
    };
    // AMD publishes family 0x19 for Zen 3 (models 0x00-0x0f, 0x20-0x5f) and Zen 4 (0x10-0x1f, 0x60-0xaf), 0x1a for Zen 5.
    let family = match (vendor.as_str(), family) {
        ("AuthenticAMD", 0x1a) => Family::Zen5,
        ("AuthenticAMD", 0x19) if (0x10..0x20).contains(&model) || (0x60..0xb0).contains(&model) => {
            Family::Zen4
        }
        ("AuthenticAMD", 0x17 | 0x19) => Family::Zen,
        // Skylake-SP, Ice Lake-SP and -D, Sapphire Rapids, Emerald Rapids.
        ("GenuineIntel", 6) if [0x55, 0x6a, 0x6c, 0x8f, 0xcf].contains(&model) => Family::Xeon,
        _ => Family::Unknown,
    };
    Cpu { vendor, name: brand, family }
}

/// Reads the CPU's identity.
#[cfg(not(target_arch = "x86_64"))]
pub fn identify() -> Cpu {
    Cpu { vendor: String::new(), name: std::env::consts::ARCH.to_owned(), family: Family::Unknown }
}

impl Family {
    /// The family whose sizes suit this one when it runs `table`: the rows of Zen 4 and 5 are those of tiles in 512-bit registers,
    /// which a virtual machine may hide.
    #[must_use]
    pub fn with_table(self, table: &Kernels) -> Self {
        match self {
            Self::Zen4 | Self::Zen5 if !table.is_wide() => Self::Zen,
            family => family,
        }
    }

    /// Sizes of blocks and the prefetch distance, measured per family (docs/decisions/0003, 0008, 0010 and 0011).
    pub fn tuning(self) -> Tuning {
        match self {
            Self::Zen | Self::Unknown => Tuning {
                panels: 4,
                prefetch: Prefetch { one: 0, rows: 4, more: 16384 },
                widened_prefetch: Prefetch { one: 512, rows: 2, more: 16384 },
                block_k: 768,
                widened: 768,
                block_m: 192,
                short_blocks: 192,
                group_rows: 128,
            },
            Self::Zen4 | Self::Zen5 => Tuning {
                panels: 2,
                prefetch: Prefetch { one: 0, rows: 7, more: 8192 },
                widened_prefetch: Prefetch { one: 256, rows: 2, more: 8192 },
                block_k: 3072,
                widened: 0,
                block_m: 528,
                short_blocks: 1024,
                group_rows: 128,
            },
            Self::Xeon => Tuning {
                panels: 4,
                prefetch: Prefetch { one: 4096, rows: 2, more: 4096 },
                widened_prefetch: Prefetch { one: 4096, rows: 2, more: 4096 },
                block_k: 768,
                widened: 256,
                block_m: 512,
                short_blocks: 64,
                group_rows: 128,
            },
        }
    }

    /// Whether the bf16 dot instruction, where the CPU has it, outruns the f32 FMA on widened values.
    pub fn fast_bf16_dot(self) -> bool {
        matches!(self, Self::Zen4 | Self::Zen5)
    }
}
