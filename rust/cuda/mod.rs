//! The CUDA backend: the program that the team runs, on a GPU. Nothing of CUDA is needed to build or to import it.

mod args;
pub mod driver;
mod forward;
mod gpu;
mod launch;
mod places;
mod tables;
mod weights;

pub use forward::{Forward, forwards};
pub use gpu::Gpu;
