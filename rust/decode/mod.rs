//! What happens to logits: processing, choosing, stopping. Ids and scores only; no model, no text, no threads.

pub mod beam;
pub mod draws;
pub mod jump;
pub mod logprobs;
pub mod processors;
pub mod sampler;
pub mod scratch;
pub mod stopping;
pub mod torch_rng;
pub mod warpers;

pub use scratch::Scratch;
