//! NVRTC, the compiler of kernels that runs without a toolkit: where it is found, how it is opened, and what it makes of a source.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use libloading::Library;

use super::errors;
use super::library::{functions, open, opened};
use crate::error::Result;

/// `nvrtcResult`; 0 is success.
type Code = c_int;
/// `nvrtcProgram`
type Program = *mut std::ffi::c_void;

/// File names of the versions that are looked for, newest first.
const NAMES: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so.12"];
/// Major versions of those.
pub(super) const MAJORS: [u32; 2] = [13, 12];
/// Where toolkits are installed.
const TOOLKIT: &str = "/usr/local/cuda/lib64";

functions! {
    /// What is used of NVRTC, as the header `nvrtc.h` of CUDA 12 declares it.
    Functions {
        nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> Code;
        nvrtcGetErrorString(code: Code) -> *const c_char;
        nvrtcCreateProgram(program: *mut Program, source: *const c_char, name: *const c_char, headers: c_int,
            texts: *const *const c_char, names: *const *const c_char) -> Code;
        nvrtcCompileProgram(program: Program, count: c_int, options: *const *const c_char) -> Code;
        nvrtcDestroyProgram(program: *mut Program) -> Code;
        nvrtcGetCUBINSize(program: Program, bytes: *mut usize) -> Code;
        nvrtcGetCUBIN(program: Program, cubin: *mut c_char) -> Code;
        nvrtcGetProgramLogSize(program: Program, bytes: *mut usize) -> Code;
        nvrtcGetProgramLog(program: Program, log: *mut c_char) -> Code;
    }
}

/// An opened compiler.
pub(super) struct Nvrtc {
    functions: Functions,
    version: (c_int, c_int),
}

impl Nvrtc {
    /// The first compiler of these places whose kernels a driver of CUDA `newest` runs: what `FASTDECODE_NVRTC` names, and nothing else; one that
    /// this process has opened already (torch's, say); those in `folders`; a toolkit's; whatever the system's loader finds.
    ///
    /// # Errors
    /// Each place that was tried, and why none serves.
    pub(super) fn find(folders: &[PathBuf], newest: Option<u32>) -> Result<Self, String> {
        let mut tried = String::new();
        let mut attempt = |place: &str, library: Result<Library, String>| match library
            .and_then(|library| Self::of(library, newest))
        {
            Ok(found) => Some(found),
            Err(reason) => {
                let _ = write!(tried, "{}{place}: {reason}", if tried.is_empty() { "" } else { "; " });
                None
            }
        };
        if let Some(path) = std::env::var_os("FASTDECODE_NVRTC").filter(|path| !path.is_empty()) {
            let place = format!("FASTDECODE_NVRTC={}", path.display());
            return attempt(&place, at(Path::new(&path))).ok_or(tried);
        }
        for name in NAMES {
            if let Some(found) = opened(name).and_then(|library| attempt(name, Ok(library))) {
                return Ok(found);
            }
        }
        for folder in folders.iter().map(PathBuf::as_path).chain([Path::new(TOOLKIT)]) {
            for path in NAMES.map(|name| folder.join(name)).into_iter().filter(|path| path.exists()) {
                if let Some(found) = attempt(&path.display().to_string(), at(&path)) {
                    return Ok(found);
                }
            }
        }
        for name in NAMES {
            // SAFETY: the name is that of NVRTC.
            if let Some(found) = attempt(name, unsafe { open(name) }) {
                return Ok(found);
            }
        }
        Err(tried)
    }

    fn of(library: Library, newest: Option<u32>) -> Result<Self, String> {
        // A compiler is not closed again: closing one that other parts of the program use is theirs to say.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: the library is NVRTC by its name, and stays open.
        let functions =
            unsafe { Functions::of(library) }.map_err(|name| format!("it has no function {name}"))?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two numbers.
        let code = unsafe { (functions.nvrtcVersion)(&raw mut major, &raw mut minor) };
        if code != 0 {
            return Err(described(&functions, code));
        }
        match newest {
            Some(newest) if major > newest as c_int => Err(format!(
                "NVRTC {major}.{minor} needs a driver for CUDA {major}, and this one is for CUDA {newest}"
            )),
            _ => {
                open_builtins(&functions);
                Ok(Self { functions, version: (major, minor) })
            }
        }
    }

    /// Its major version, which is that of the oldest drivers that run what it makes.
    pub(super) fn major(&self) -> u32 {
        u32::try_from(self.version.0).unwrap_or(0)
    }

    /// Its name and version.
    pub(super) fn shown(&self) -> String {
        format!("NVRTC {}.{}", self.version.0, self.version.1)
    }

    /// Compiles a source to a cubin.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) with the whole log where it does not compile.
    pub(super) fn compile(
        &self,
        file: &str,
        source: &str,
        architecture: &str,
        options: &[String],
    ) -> Result<Vec<u8>> {
        let text = |text: &str| {
            CString::new(text)
                .map_err(|_| errors::compiler_failed("nvrtcCreateProgram", "a text with a zero byte"))
        };
        let (source, name) = (text(source)?, text(file)?);
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = Held { functions: &self.functions, program: null_mut() };
        let functions = &self.functions;
        // SAFETY: it writes one pointer, and reads two texts that end with 0 and no header.
        let code = unsafe {
            (functions.nvrtcCreateProgram)(
                &raw mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                null(),
                null(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        // SAFETY: the program was made, and there are so many options, each a text that ends with 0.
        let code = unsafe {
            (functions.nvrtcCompileProgram)(program.program, options.len() as c_int, options.as_ptr())
        };
        if code != 0 {
            let log = format!("{}\n{}", described(functions, code), self.log(&program)?);
            return Err(errors::not_compiled(file, architecture, &self.shown(), &log));
        }
        let mut size = 0;
        // SAFETY: it writes one number.
        let code = unsafe { (functions.nvrtcGetCUBINSize)(program.program, &raw mut size) };
        self.check("nvrtcGetCUBINSize", code)?;
        let mut cubin = vec![0; size];
        // SAFETY: it writes as many bytes as it has just said.
        let code = unsafe { (functions.nvrtcGetCUBIN)(program.program, cubin.as_mut_ptr().cast()) };
        self.check("nvrtcGetCUBIN", code)?;
        Ok(cubin)
    }

    fn log(&self, program: &Held<'_>) -> Result<String> {
        let mut size = 0;
        // SAFETY: it writes one number.
        let code = unsafe { (self.functions.nvrtcGetProgramLogSize)(program.program, &raw mut size) };
        self.check("nvrtcGetProgramLogSize", code)?;
        let mut log = vec![0; size];
        // SAFETY: it writes as many bytes as it has just said.
        let code = unsafe { (self.functions.nvrtcGetProgramLog)(program.program, log.as_mut_ptr().cast()) };
        self.check("nvrtcGetProgramLog", code)?;
        Ok(String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned())
    }

    fn check(&self, function: &str, code: Code) -> Result<()> {
        if code == 0 {
            Ok(())
        } else {
            Err(errors::compiler_failed(function, &described(&self.functions, code)))
        }
    }
}

/// A program that is being compiled.
struct Held<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: it was made by this library, and is destroyed once.
            let _ = unsafe { (self.functions.nvrtcDestroyProgram)(&raw mut self.program) };
        }
    }
}

/// A library by its path.
fn at(path: &Path) -> Result<Library, String> {
    // SAFETY: the file is called NVRTC, by its name or by the user.
    unsafe { open(path) }
}

/// A code in the library's words.
fn described(functions: &Functions, code: Code) -> String {
    // SAFETY: it returns a constant text that ends with 0, for unknown codes, too.
    let text = unsafe { (functions.nvrtcGetErrorString)(code) };
    if text.is_null() {
        return format!("code {code}");
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Opens the library that NVRTC opens by its bare name when it compiles, from NVRTC's own folder: some versions do not find it there by
/// themselves. Where that fails, the compiler's log says so.
#[cfg(unix)]
fn open_builtins(functions: &Functions) {
    use std::os::unix::ffi::OsStrExt as _;
    // SAFETY: an all-zero `Dl_info` is one of null pointers.
    let mut about: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: it looks up an address of a function, and writes one struct.
    let found = unsafe { libc::dladdr(functions.nvrtcVersion as *const _, &raw mut about) };
    if found == 0 || about.dli_fname.is_null() {
        return;
    }
    // SAFETY: the loader's text ends with 0, and lives as long as the library.
    let path = Path::new(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(about.dli_fname) }.to_bytes()));
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(entries) = path.parent().and_then(|folder| std::fs::read_dir(folder).ok()) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().as_bytes().starts_with(b"libnvrtc-builtins.so.") {
            // It stays open, as NVRTC does.
            std::mem::forget(at(&entry.path()));
        }
    }
}

#[cfg(not(unix))]
fn open_builtins(_: &Functions) {}
