//! Libraries that are opened at run time, and tables of the functions that are taken from them.

use std::error::Error as _;
use std::ffi::OsStr;

use libloading::Library;

/// Opens a library with all that it needs, and shows its symbols to nobody else.
///
/// # Errors
/// What the system's loader says.
///
/// # Safety
/// The library's initializers run. It must be what its name says.
pub(super) unsafe fn open(name: impl AsRef<OsStr>) -> Result<Library, String> {
    // On Unix this is `dlopen` with `RTLD_LAZY | RTLD_LOCAL`.
    // SAFETY: the caller answers for the library.
    unsafe { Library::new(name.as_ref()) }.map_err(|error| {
        // The loader's own words stand behind the error.
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// A library that some part of this process has opened already, or none.
#[cfg(unix)]
pub(super) fn opened(name: &str) -> Option<Library> {
    use libloading::os::unix;
    // SAFETY: with `RTLD_NOLOAD` nothing is loaded, so that no initializer runs.
    let found = unsafe { unix::Library::open(Some(name), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    found.ok().map(Library::from)
}

/// A library that some part of this process has opened already: other systems are not asked.
#[cfg(not(unix))]
pub(super) fn opened(_: &str) -> Option<Library> {
    None
}

/// A function of a library, or the name of the one that is missing.
///
/// # Safety
/// `F` is a function pointer of the signature that the library's header gives this name, and is not called after the library is closed.
pub(super) unsafe fn function<F: Copy>(library: &Library, name: &'static str) -> Result<F, &'static str> {
    // SAFETY: the caller answers for the signature and for how long it is used.
    unsafe { library.get::<F>(name) }.map(|symbol| *symbol).map_err(|_| name)
}

/// Declares a struct with one function pointer for each line, and how they are looked up.
macro_rules! functions {
    ($(#[$about:meta])* $table:ident { $($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)* }) => {
        $(#[$about])*
        #[expect(non_snake_case, reason = "the functions have the names of the C header")]
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($argument: $kind),*) -> $result,)*
        }

        impl $table {
            /// Looks every function up; the error is the name of the first one that is missing.
            ///
            /// # Safety
            /// The library is the one whose header declares these functions, and stays open while the table is used.
            unsafe fn of(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the signature is that of the header, and the caller keeps the library open.
                    $($name: unsafe { $crate::cuda::driver::library::function(library, stringify!($name))? },)*
                })
            }
        }
    };
}
pub(super) use functions;
