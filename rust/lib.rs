//! Runs GPT-2- and T5-class Hugging Face folders on a CPU; see ARCHITECTURE.md for the rooms and what each may import.

// The rooms, from the ground up: a room imports from those above it in this list.
pub mod error;
pub mod forks;
pub mod kernels;
pub mod team;
pub mod arena;
pub mod headroom;
pub mod limits;
pub mod packed;
pub mod kv;
pub mod layers;
pub mod checkpoint;
pub mod load;
pub mod program;
pub mod execute;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod models;
pub mod decode;
pub mod engine;
#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
