use std::{io, path::PathBuf};

/// What can go wrong with one expert.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk is full.
    #[error("no space left to write {path}; free some on that disk and run again, what was saved before is kept")]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Images, captions or features that cannot be used.
    #[error("{what}: {why}")]
    Data {
        /// Which data.
        what: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A weights file that is no safetensors file of the expected tensors.
    #[error("{path} is not usable as weights: {why}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A checkpoint's description does not fit what was asked for.
    #[error("checkpoint {path}: {why}")]
    Checkpoint {
        /// The folder.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// Training cannot go on.
    #[error("training diverged at step {step}: {why}; train under another --name with a lower --learning-rate")]
    Diverged {
        /// The step.
        step: u64,
        /// What was seen.
        why: String,
    },
    /// Not one image at a time fits the device.
    #[error(
        "out of memory with one image at a time ({why}); give {}a smaller --architecture, or another --device",
        if *recompute { "" } else { "--recompute, " }
    )]
    Memory {
        /// libtorch's word.
        why: String,
        /// Whether activations were recomputed already.
        recompute: bool,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A specification out of range.
    #[error(transparent)]
    Protocol(#[from] hdd_protocol::Error),
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // The message carries a C++ stack trace; its first line says it all.
        Self::Torch(error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds what was tried and where to an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull => Error::NoSpace { path: path.into(), source },
            _ => Error::Io { action, path: path.into(), source },
        })
    }
}
