//! The store of compiled kernels: cubins that the package ships, those that this user's machine has compiled before, and the compiler.
//!
//! A cubin's file name holds a hash of everything that it was compiled from, so a file that is found is the right one, and old ones are not found.
//! `tools/build_cubins.py` writes files of the same names.

use std::fs;
use std::io::Write as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::errors;
use super::ffi::Driver;
use super::image;
use super::nvrtc::{self, Nvrtc};
use crate::error::Result;

/// Options of the compiler besides the architecture, one a line; the tool that fills the store reads the same file.
const OPTIONS: &str = include_str!("../kernels/options.txt");

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Folders {
    /// Cubins of the package.
    pub shipped: Option<PathBuf>,
    /// Folders in which NVRTC may be.
    pub nvrtc: Vec<PathBuf>,
}

/// Compiled kernels of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cubin {
    bytes: Vec<u8>,
    /// Where they were found.
    pub origin: Origin,
}

/// Where compiled kernels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The package.
    Shipped,
    /// The user's cache.
    Cached,
    /// NVRTC, just now.
    Compiled,
}

impl Deref for Cubin {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The kernels of a file for GPUs of a compute capability. `sources` are names and texts of what is compiled as one, in order; the last
/// one gives the file its name.
///
/// # Errors
/// [`Cuda`](crate::Error::Cuda) where there is no such cubin and no compiler, or it does not compile.
pub fn cubin(capability: (u32, u32), sources: &[(&str, &str)], folders: &Folders) -> Result<Cubin> {
    cubin_for(&architecture(capability), sources, folders)
}

/// The same, compiled for this very compute capability, where a driver refuses what serves others of its major one (those of Jetson boards
/// do).
///
/// # Errors
/// As for [`cubin`].
pub fn exact((major, minor): (u32, u32), sources: &[(&str, &str)], folders: &Folders) -> Result<Cubin> {
    cubin_for(&format!("sm_{major}{minor}"), sources, folders)
}

fn cubin_for(architecture: &str, sources: &[(&str, &str)], folders: &Folders) -> Result<Cubin> {
    let source = joined(sources);
    let file = sources.last().map_or("kernels", |(name, _)| *name);
    let options = options(architecture);
    let name = name(file, &source, architecture, &options);
    let (cache, newest) = (cache(), Driver::major());
    // Machines with older drivers may share the cache: what newer compilers made is nothing to them.
    let majors = nvrtc::MAJORS.into_iter().filter(|major| newest.is_none_or(|newest| *major <= newest));
    let kept = majors.filter_map(|major| Some((made_by(cache.as_ref()?, major), Origin::Cached)));
    for (folder, origin) in
        folders.shipped.clone().map(|folder| (folder, Origin::Shipped)).into_iter().chain(kept)
    {
        let bytes = fs::read(folder.join(&name)).ok();
        // A file that is damaged is as good as none, and is written anew.
        if let Some(bytes) = bytes.filter(|bytes| image::is_whole(bytes)) {
            return Ok(Cubin { bytes, origin });
        }
    }
    let compiler = Nvrtc::find(&folders.nvrtc, newest)
        .map_err(|tried| errors::no_kernels(file, architecture, &tried))?;
    let bytes = compiler.compile(file, &source, architecture, &options)?;
    if let Some(folder) = cache {
        // Kernels that cannot be kept are compiled again the next time; that costs a second, and nothing fails.
        let _ = keep(&made_by(&folder, compiler.major()), &name, &bytes);
    }
    Ok(Cubin { bytes, origin: Origin::Compiled })
}

/// What a GPU's kernels are compiled for. A cubin serves its own and later minor capabilities of one major one.
fn architecture((major, minor): (u32, u32)) -> String {
    match major {
        8 | 9 | 10 | 12 => format!("sm_{major}0"),
        _ => format!("sm_{major}{minor}"),
    }
}

/// Texts as one, with marks after which the compiler counts lines of each file by itself.
fn joined(sources: &[(&str, &str)]) -> String {
    sources.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

fn options(architecture: &str) -> Vec<String> {
    let listed = OPTIONS.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
    listed.chain([format!("--gpu-architecture={architecture}")]).collect()
}

/// The file of a cubin: what it is of, a hash of all that it is compiled from, what it is for.
fn name(file: &str, source: &str, architecture: &str, options: &[String]) -> String {
    let stem = file.split('.').next().unwrap_or(file);
    let hashed = hash(format!("{}\n{source}", options.join("\n")).as_bytes());
    format!("{stem}-{hashed:032x}-{architecture}.cubin")
}

/// FNV-1a with 128 bits: short, known, and the same in the tool.
fn hash(bytes: &[u8]) -> u128 {
    const PRIME: u128 = (1 << 88) + 0x13b;
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

/// The folder of this user's cubins; none for a user without a home.
fn cache() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("fastdecode").join("cubin"))
}

/// The part of a cache that compilers of this major version fill.
fn made_by(cache: &Path, major: u32) -> PathBuf {
    cache.join(format!("cuda{major}"))
}

/// Writes a file under another name first, so that nobody ever reads a part of it.
fn keep(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    // Threads of one process may keep the same file at once, too.
    static FILES: AtomicUsize = AtomicUsize::new(0);
    fs::create_dir_all(folder)?;
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let unfinished = folder.join(format!(".{name}.{}.{number}", std::process::id()));
    let written = fs::File::create_new(&unfinished).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, folder.join(name))
    });
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv() {
        // Vectors of the draft by its authors (draft-eastlake-fnv).
        assert_eq!(hash(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(hash(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash(b"foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn a_cubin_serves_its_major_capability() {
        let pairs = [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_80"),
            ((8, 9), "sm_80"),
            ((9, 0), "sm_90"),
            ((10, 3), "sm_100"),
            ((12, 1), "sm_120"),
            ((11, 0), "sm_110"),
            ((13, 2), "sm_132"),
        ];
        for (capability, expected) in pairs {
            assert_eq!(architecture(capability), expected, "{capability:?}");
        }
    }

    #[test]
    fn names_tell_sources_and_options_apart() {
        let named = |source, architecture: &str| name("a.cu", source, architecture, &options(architecture));
        let first = named("x", "sm_90");
        assert!(first.starts_with("a-") && first.ends_with("-sm_90.cubin"), "{first}");
        assert_ne!(first, named("y", "sm_90"), "another source");
        let hash = |name: &str| name.split('-').nth(1).map(str::to_owned);
        assert_ne!(hash(&first), hash(&named("x", "sm_80")), "another architecture");
    }

    #[test]
    fn a_kept_file_is_whole_and_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = folder.path().join("a").join("b");
        keep(&inside, "name", b"first").expect("written");
        keep(&inside, "name", b"second").expect("written over");
        let names: Vec<_> =
            fs::read_dir(&inside).expect("listed").map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(names, ["name"], "nothing else is left");
        assert_eq!(fs::read(inside.join("name")).expect("read"), b"second");
        assert!(keep(&inside.join("name"), "below a file", b"").is_err(), "no folder to write to");
    }
}
