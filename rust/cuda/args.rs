//! The structures that kernels take, as `kernels/common.cuh` and the files beside it declare them. Addresses are the device's.

use crate::kernels::Activation;
use crate::layers::norm::NormKind;

/// A norm, or none.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NormArgs {
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) eps: f32,
    /// 0 for no norm.
    pub(super) kind: i32,
}

impl NormArgs {
    pub(super) fn kind(kind: NormKind) -> i32 {
        match kind {
            NormKind::Layer => 1,
            NormKind::Rms => 2,
        }
    }
}

/// Where some outputs of a product go.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ResultArgs {
    pub(super) at: u64,
    pub(super) stride: i32,
    pub(super) first: i32,
    pub(super) activation: i32,
}

/// The activation's number in the kernels' list, which is in the order of the host's.
pub(super) fn activation(activation: Activation) -> i32 {
    activation as i32
}

/// Results of one product, at most.
pub(super) const MOST_RESULTS: usize = 4;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LinearArgs {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) bias: u64,
    pub(super) residual: u64,
    pub(super) norm: NormArgs,
    pub(super) results: [ResultArgs; MOST_RESULTS],
    pub(super) x_stride: i32,
    pub(super) w_stride: i32,
    pub(super) residual_stride: i32,
    pub(super) rows: i32,
    pub(super) inputs: i32,
    pub(super) outputs: i32,
    pub(super) count: i32,
    pub(super) gated: i32,
    pub(super) split: i32,
}

/// A row that looks at keys.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) row: i32,
    pub(super) out: i32,
    pub(super) position: i32,
    pub(super) keys: i32,
    pub(super) block: i32,
}

/// Heads side by side in rows.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HeadsArgs {
    pub(super) at: u64,
    pub(super) stride: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Preparation {
    pub(super) norm: NormArgs,
    pub(super) angles: u64,
    pub(super) pairs: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CacheArgs {
    pub(super) blocks: u64,
    pub(super) keys: i64,
    pub(super) values: i64,
    pub(super) head: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AppendArgs {
    pub(super) looks: u64,
    pub(super) cache: CacheArgs,
    pub(super) keys: HeadsArgs,
    pub(super) values: HeadsArgs,
    pub(super) prepare: Preparation,
    pub(super) rows: i32,
    pub(super) heads: i32,
    pub(super) d: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AttendArgs {
    pub(super) looks: u64,
    pub(super) cache: CacheArgs,
    pub(super) queries: HeadsArgs,
    pub(super) prepare: Preparation,
    pub(super) bias: u64,
    pub(super) buckets: u64,
    pub(super) out: u64,
    pub(super) partial: u64,
    pub(super) tickets: u64,
    pub(super) tiles: u64,
    pub(super) scale: f32,
    pub(super) out_stride: i32,
    pub(super) rows: i32,
    pub(super) heads: i32,
    pub(super) group: i32,
    pub(super) d: i32,
    pub(super) causal: i32,
    pub(super) window: i32,
    pub(super) reach: i32,
    pub(super) bucket_count: i32,
    pub(super) chunks: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EmbedArgs {
    pub(super) ids: u64,
    pub(super) positions: u64,
    pub(super) is_long: u64,
    pub(super) table: u64,
    pub(super) given: u64,
    pub(super) learned: u64,
    pub(super) inverse: u64,
    pub(super) inverse_long: u64,
    pub(super) out: u64,
    pub(super) angles: u64,
    pub(super) factor: f32,
    pub(super) table_stride: i32,
    pub(super) width: i32,
    pub(super) out_stride: i32,
    pub(super) rows: i32,
    pub(super) pairs: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NormRowsArgs {
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) norm: NormArgs,
    pub(super) x_stride: i32,
    pub(super) out_stride: i32,
    pub(super) width: i32,
    pub(super) rows: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GatherArgs {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) wanted: u64,
    pub(super) from_stride: i32,
    pub(super) to_stride: i32,
    pub(super) width: i32,
    pub(super) rows: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BestArgs {
    pub(super) logits: u64,
    pub(super) values: u64,
    pub(super) ids: u64,
    pub(super) stride: i32,
    pub(super) vocabulary: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AdvanceArgs {
    pub(super) values: u64,
    pub(super) best: u64,
    pub(super) chosen: u64,
    pub(super) step: u64,
    pub(super) ids: u64,
    pub(super) positions: u64,
    pub(super) looks: u64,
    pub(super) rows: i32,
}

/// Kernel files assert the same sizes: `static_assert` at their ends.
const _: () = {
    assert!(size_of::<NormArgs>() == 24 && size_of::<ResultArgs>() == 24 && size_of::<LinearArgs>() == 192);
    assert!(size_of::<Look>() == 20 && size_of::<HeadsArgs>() == 16 && size_of::<Preparation>() == 40);
    assert!(size_of::<CacheArgs>() == 32 && size_of::<AppendArgs>() == 128 && size_of::<AttendArgs>() == 192);
    assert!(
        size_of::<EmbedArgs>() == 104 && size_of::<NormRowsArgs>() == 56 && size_of::<GatherArgs>() == 40
    );
    assert!(size_of::<BestArgs>() == 32 && size_of::<AdvanceArgs>() == 64);
};
