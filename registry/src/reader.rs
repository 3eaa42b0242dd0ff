use crate::{
    Error, Result,
    blobs::{chunks, tree_of},
};
use bao_tree::io::{EncodeError, outboard::PostOrderOutboard, sync::encode_ranges_validated};
use hdd_protocol::Blob;
use std::{fs::File, io, path::PathBuf};

/// Sends ranges of a blob in a form that the receiver can verify.
pub struct BlobReader {
    blob: Blob,
    path: PathBuf,
    data: File,
    tree: PostOrderOutboard<File>,
}

impl BlobReader {
    pub(crate) fn new(blob: Blob, path: PathBuf, data: File, tree: File) -> Self {
        let root = (*blob.digest.as_bytes()).into();
        Self { blob, path, data, tree: PostOrderOutboard { root, tree: tree_of(blob.size), data: tree } }
    }

    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        self.blob.size
    }

    /// Writes the bao encoding (pre-order, 16 KiB groups, no length prefix) of all groups that the `len` bytes from
    /// `start` touch, which is what [`crate::Download::write_range`] expects for that range. Each group is checked
    /// before it is written.
    ///
    /// # Errors
    /// [`Error::BadRange`] if the range is empty or passes the end; [`Error::Corrupt`] if the file no longer matches its
    /// hash; [`Error::Stream`] if `sink` fails.
    pub fn encode_range(&self, start: u64, len: u64, sink: &mut impl io::Write) -> Result<()> {
        let Blob { digest, size } = self.blob;
        let end = start.checked_add(len).filter(|end| len > 0 && *end <= size);
        let end = end.ok_or(Error::BadRange { digest, start, len, size })?;
        encode_ranges_validated(&self.data, &self.tree, &chunks(&(start..end)), sink).map_err(|error| match error {
            EncodeError::ParentHashMismatch(_) | EncodeError::LeafHashMismatch(_) | EncodeError::SizeMismatch => {
                Error::corrupt(&self.path, "it or its tree no longer matches its hash")
            }
            EncodeError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Error::corrupt(&self.path, "it has become shorter")
            }
            other => Error::Stream { digest, offset: start, source: other.into() },
        })
    }
}
