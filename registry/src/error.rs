use hdd_protocol::{Digest, PublicKey};
use std::{
    io,
    path::{Path, PathBuf},
};

/// What can go wrong with a node's store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk has too little room, or ran full during a write.
    #[error(
        "no space in {folder}: {needed} bytes are needed, {free} are free; free some or choose another data folder"
    )]
    NoSpace {
        /// Bytes that the write needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// Another node holds the folder.
    #[error("{folder} is in use by another hdd-node; stop that one or choose another data folder")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// A later version of the program wrote the folder.
    #[error(
        "{folder} has layout {found}, this build reads layout {supported}; update hdd-node or choose another data folder"
    )]
    Layout {
        /// The folder.
        folder: PathBuf,
        /// The layout that its `version` file names.
        found: String,
        /// The layout of this build.
        supported: u32,
    },
    /// A rollback: a later version of the expert is known.
    #[error("'{name}' by {author} has sequence {sequence}, but {highest} is known; its author must publish with a higher one", author = author.short())]
    Stale {
        /// Who signed.
        author: PublicKey,
        /// The expert.
        name: String,
        /// The manifest's sequence number.
        sequence: u64,
        /// The highest that is known.
        highest: u64,
    },
    /// The author signed two manifests with one sequence number; both are kept, and nothing more is taken from that key.
    #[error("{author} signed two different manifests with one sequence number ({} and {}): the key is distrusted", evidence[0].short(), evidence[1].short(), author = author.short())]
    Equivocation {
        /// Who signed both.
        author: PublicKey,
        /// The two manifests, in the order of their digests.
        evidence: [Digest; 2],
    },
    /// The author took the expert back.
    #[error("manifest {} was revoked by its author ({})", manifest.short(), revocation.short())]
    Revoked {
        /// The manifest.
        manifest: Digest,
        /// The record that revokes it.
        revocation: Digest,
    },
    /// The author, or the store, has as many records as it may have.
    #[error("{} {limit} records here, the most {} may have; raise the limit to take more", author.map_or("all authors have".into(), |a| a.short() + " has"), author.map_or("that they", |_| "that one key"))]
    Quota {
        /// Whose quota it is; none for the one that all authors share.
        author: Option<PublicKey>,
        /// The limit.
        limit: usize,
    },
    /// Received bytes do not belong to the blob. What was verified before them is kept.
    #[error("wrong bytes for blob {} at {offset}: the sender has another file or altered this one; fetch from another peer", digest.short())]
    WrongBytes {
        /// The blob.
        digest: Digest,
        /// Offset of the group that does not match, bytes.
        offset: u64,
    },
    /// The blob is held and has another size than the one claimed.
    #[error("blob {} has {actual} bytes, not {claimed}: whoever claims so is wrong", digest.short())]
    WrongSize {
        /// The blob.
        digest: Digest,
        /// Bytes claimed.
        claimed: u64,
        /// Bytes held.
        actual: u64,
    },
    /// The other side of a transfer stopped.
    #[error("transfer of blob {} broke off at {offset}: {source}; it can be resumed", digest.short())]
    Stream {
        /// The blob.
        digest: Digest,
        /// Offset, bytes.
        offset: u64,
        /// What the stream said.
        source: io::Error,
    },
    /// A range that the blob does not have, or that is not made of whole groups.
    #[error("blob {} has {size} bytes: no range of {len} bytes can be had at {start}", digest.short())]
    BadRange {
        /// The blob.
        digest: Digest,
        /// First byte asked for.
        start: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes of the blob.
        size: u64,
    },
    /// A download was to be finished too early.
    #[error("blob {} has {done} of {size} bytes; fetch the rest first", digest.short())]
    Incomplete {
        /// The blob.
        digest: Digest,
        /// Bytes verified.
        done: u64,
        /// Bytes in all.
        size: u64,
    },
    /// The blob is being downloaded already.
    #[error("blob {} is being downloaded already; wait for that download", digest.short())]
    Busy {
        /// The blob.
        digest: Digest,
    },
    /// A file is not what it was when it was written.
    #[error("{path} is damaged: {why}; move it away, it will be fetched again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The index failed while the node ran.
    #[error("the index in {folder} failed: {source}; start again, it is rebuilt from the records")]
    Index {
        /// The index.
        folder: PathBuf,
        /// What sled said.
        source: sled::Error,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: `action` on `path` failed.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.into(), source }
    }

    /// For `map_err`: a write of `bytes` bytes to `path` failed, perhaps because the disk is full.
    pub(crate) fn write(path: &Path, bytes: u64) -> impl FnOnce(io::Error) -> Self {
        Self::fill("write", path, bytes)
    }

    /// For `map_err`: `action` on `path`, which writes `bytes` bytes beside it, failed.
    pub(crate) fn fill(action: &'static str, path: &Path, bytes: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let folder = path.parent().unwrap_or(path).to_path_buf();
                let free = fs4::available_space(&folder).unwrap_or(0);
                Self::NoSpace { needed: bytes, free, folder }
            }
            _ => Self::Io { action, path: path.into(), source },
        }
    }

    pub(crate) fn corrupt(path: &Path, why: impl ToString) -> Self {
        Self::Corrupt { path: path.into(), why: why.to_string() }
    }
}

/// Refuses unless `bytes` and a tenth more are free in `folder`.
pub(crate) fn ensure_space(folder: &Path, bytes: u64) -> Result<()> {
    let needed = bytes.saturating_add(bytes / 10);
    let free = fs4::available_space(folder).map_err(Error::io("ask for the free space of", folder))?;
    if needed > free { Err(Error::NoSpace { needed, free, folder: folder.into() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        use std::io::Write as _;
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().write_all(&[1]).unwrap_err();
        let error = Error::write(Path::new("/dev/full"), 7)(full);
        assert!(matches!(&error, Error::NoSpace { needed: 7, folder, .. } if folder == Path::new("/dev")), "{error:?}");
        let other = Error::write(Path::new("/dev/full"), 7)(io::ErrorKind::PermissionDenied.into());
        assert!(matches!(other, Error::Io { .. }), "{other:?}");
    }
}
