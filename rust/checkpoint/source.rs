//! Where bytes come from: a regular file read by position, memory handed in by the caller, or what is computed when it is read.
//!
//! Files are never mapped: a map counts as our memory, and a file that is cut short under a map kills the process. A
//! short read is an error like any other. Nothing here knows what the bytes mean.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// Bytes in memory that outlive the call that handed them in.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// What computes its bytes when they are asked for.
pub(super) trait Computed: Send + Sync {
    /// Fills `buf` with the bytes from `offset` on.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// Something that can be read at any position by several threads at once.
pub(super) struct Source {
    label: Arc<str>,
    path: PathBuf,
    len: u64,
    bytes: Bytes,
}

enum Bytes {
    File(File),
    Memory(SharedBytes),
    Computed(Box<dyn Computed>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("label", &self.label).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens a regular file.
    ///
    /// # Errors
    /// `Io` when the system refuses it or it is no regular file (opening a pipe would wait forever).
    pub(super) fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !kind.is_file() {
            let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::io(path, reason));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        Ok(Self {
            label: path.display().to_string().into(),
            path: path.into(),
            len,
            bytes: Bytes::File(file),
        })
    }

    /// Wraps bytes that are already in memory; `label` stands for the file's name in errors.
    pub(super) fn memory(label: &str, bytes: SharedBytes) -> Self {
        let len = (*bytes).as_ref().len() as u64;
        Self { label: label.into(), path: label.into(), len, bytes: Bytes::Memory(bytes) }
    }

    /// `len` bytes that are computed when they are read; `label` stands for the file's name in errors.
    pub(super) fn computed(label: &str, len: u64, computed: Box<dyn Computed>) -> Self {
        Self { label: label.into(), path: label.into(), len, bytes: Bytes::Computed(computed) }
    }

    /// Name of the file in errors.
    pub(super) fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Size in bytes when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` with the bytes from `offset` on; `tensor` is named in the error.
    ///
    /// # Errors
    /// `Checkpoint` when the source ends before, `Io` when the system refuses the read.
    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8], tensor: Option<&str>) -> Result<()> {
        let done = match &self.bytes {
            Bytes::Computed(computed) => return computed.read_at(offset, buf),
            Bytes::File(file) => read_exact_at(file, offset, buf),
            Bytes::Memory(bytes) => {
                let bytes: &[u8] = (**bytes).as_ref();
                let part =
                    usize::try_from(offset).ok().and_then(|start| bytes.get(start..)?.get(..buf.len()));
                part.map(|part| buf.copy_from_slice(part)).ok_or(std::io::ErrorKind::UnexpectedEof.into())
            }
        };
        done.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                let expected = format!("{} bytes at offset {offset}", buf.len());
                let got = format!("an end of file before (it had {} bytes when it was opened)", self.len);
                self.malformed(tensor, expected, got)
            }
            _ => Error::io(&self.path, error),
        })
    }

    /// An error about the contents of this source.
    pub(super) fn malformed(
        &self,
        tensor: Option<&str>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Error {
        Error::Checkpoint {
            file: self.label.to_string(),
            tensor: tensor.map(str::to_owned),
            expected: expected.into(),
            got: got.into(),
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut buf: &mut [u8]) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_read(buf, offset) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
