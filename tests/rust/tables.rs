//! The tables of kernels that a test must run: those that this CPU's flags promise, by name.
//!
//! A table that is no longer detected, or no longer listed, would otherwise take its tests with it in silence.

use std::io::Write as _;
use std::sync::Once;

use fastdecode::kernels::Kernels;

const AVX2: &[&str] = &["avx2", "fma", "f16c"];
const AVX512: &[&str] = &["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"];
const AVX_VNNI: &[&str] = &["avx2", "fma", "f16c", "avx_vnni"];
const VNNI: &[&str] = &["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"];
const BF16: &[&str] =
    &["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"];

/// Every table, the best first, with the flags of `/proc/cpuinfo` that it needs.
const NEEDS: [(&str, &[&str]); 6] = [
    ("avx512bf16", BF16),
    ("avx512vnni", VNNI),
    ("avx512", AVX512),
    ("avxvnni", AVX_VNNI),
    ("avx2", AVX2),
    ("portable", &[]),
];

/// Names of the tables that a CPU with these flags must have, and of those that it cannot have.
fn split(flags: &[&str]) -> (Vec<&'static str>, Vec<&'static str>) {
    let (have, lack): (Vec<_>, Vec<_>) =
        NEEDS.iter().partition(|(_, needs)| needs.iter().all(|flag| flags.contains(flag)));
    (have.iter().map(|(name, _)| *name).collect(), lack.iter().map(|(name, _)| *name).collect())
}

/// The line of flags of `/proc/cpuinfo`; only x86-64 has tables that need any.
fn cpuinfo() -> String {
    if !cfg!(target_arch = "x86_64") {
        return String::new();
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").expect("Linux lists the CPU's flags");
    let line = text.lines().find(|line| line.starts_with("flags")).expect("a line of flags");
    line.split_once(':').expect("flags behind a colon").1.to_owned()
}

/// The tables to test, the best first; says once which these are, past the capture of the test harness.
///
/// # Panics
/// When they are not those that the CPU's flags promise.
pub(crate) fn tables() -> Vec<Kernels> {
    let tables = Kernels::available();
    let names: Vec<&str> = tables.iter().map(|table| table.name).collect();
    let cpuinfo = cpuinfo();
    let (have, lack) = split(&cpuinfo.split_whitespace().collect::<Vec<_>>());
    assert_eq!(names, have, "the tables, and those that the flags of this CPU promise");
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let mut line = format!("\ntables of kernels under test: {}\n", names.join(", "));
        if !lack.is_empty() {
            line += &format!("NOT TESTED, because this CPU lacks them: {}\n", lack.join(", "));
        }
        std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
    });
    tables
}

#[test]
fn flags_promise_tables() {
    assert_eq!(split(&[]).0, ["portable"], "an old CPU");
    assert_eq!(split(&["avx2", "fma"]).0, ["portable"], "f16c is absent");
    assert_eq!(split(AVX2).0, ["avx2", "portable"], "no AVX-512");
    assert_eq!(split(AVX_VNNI).0, ["avxvnni", "avx2", "portable"], "the dot of bytes without AVX-512");
    assert_eq!(split(&BF16[..7]).0, ["avx512", "avx2", "portable"], "AVX-512 without dots");
    assert_eq!(split(&BF16[..8]).0, ["avx512vnni", "avx512", "avx2", "portable"], "AVX-512 without bf16");
    assert_eq!(split(&BF16[..8]).1, ["avx512bf16", "avxvnni"], "what that lacks");
    assert_eq!(split(BF16).0, ["avx512bf16", "avx512vnni", "avx512", "avx2", "portable"], "all of them");
}

#[test]
fn every_promised_table_can_be_had_by_name() {
    for table in tables() {
        assert_eq!(Kernels::named(table.name).map(|t| t.name).ok(), Some(table.name), "by its name");
    }
}
