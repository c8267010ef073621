//! The CUDA backend; nothing of CUDA is needed to build or to import it.

pub mod driver;
