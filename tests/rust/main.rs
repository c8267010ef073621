//! Integration tests of the engine, one file per law.

mod allocation;
mod architecture;
mod attention;
mod checkpoint_adapted;
mod checkpoint_config;
mod checkpoint_folder;
mod checkpoint_fuzz;
mod checkpoint_legacy;
mod checkpoint_pickle;
mod checkpoint_safetensors;
mod decode_draws;
mod decode_golden;
mod decode_rng;
mod decode_sets;
mod encoder;
mod engine;
mod fake;
mod forward;
mod int4;
mod int8;
mod kernels;
mod kernels_cache;
mod linear;
mod prefixes;
mod profile;
mod program;
mod scans;
mod schedule;
mod schedule_any;
mod schedule_greedy;
mod schedule_memory;
mod schedule_threads;
mod score;
mod tables;

/// The golden file `name`, made by a script in `tools/`.
fn golden(name: &str) -> serde_json::Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; the repository holds it", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
