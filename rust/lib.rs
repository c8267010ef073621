//! Runs GPT-2- and T5-class Hugging Face folders on a CPU; see ARCHITECTURE.md for the rooms and what each may import.

pub mod arena;
pub mod checkpoint;
pub mod decode;
pub mod engine;
pub mod error;
pub mod headroom;
pub mod kernels;
pub mod kv;
pub mod layers;
pub mod limits;
pub mod models;
pub mod packed;
#[cfg(feature = "python")]
mod python;
pub mod team;

pub use error::{Error, Result};
