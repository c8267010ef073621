//! Runs GPT-2- and T5-class Hugging Face folders on a CPU; see ARCHITECTURE.md for the rooms and what each may import.

pub mod error;
pub mod kernels;
pub mod team;
pub mod packed;
pub mod kv;
pub mod layers;
pub mod checkpoint;
pub mod models;
pub mod decode;
pub mod engine;

pub use error::{Error, Result};
