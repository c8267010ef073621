//! One network operation a file, split over the team: a layer knows shapes, not models.
//!
//! A layer writes outputs that belong to its member alone and holds no barrier, unless its documentation says so: the executor
//! of a program says where members meet.

pub mod attention;
pub mod embedding;
pub mod heads;
pub mod linear;
pub mod norm;
pub mod relative_bias;
pub mod rotary;
pub mod rows;
pub mod runtime;

pub use rows::{Buffer, Rows, stride};
pub use runtime::{Context, Runtime, packed_rows, scratch};
