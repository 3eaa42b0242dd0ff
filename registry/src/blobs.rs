//! Blobs: files under their BLAKE3 hash, each with its verification tree (post-order, 16 KiB groups) beside it.

use crate::{BlobReader, Error, GROUP, Registry, Result, atomic, error::ensure_space, layout};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, io::sync::outboard_post_order};
use hdd_protocol::{Blob, Digest};
use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
};
use tempfile::TempPath;

const DATA: &str = ".data";
const TREE: &str = ".obao";
const BUFFER: usize = 1 << 20;

impl Registry {
    pub(crate) fn data_path(&self, digest: Digest) -> PathBuf {
        data_in(&self.layout.blobs, digest)
    }

    /// Takes a file in: by a hard link where the file system allows it, by a copy where not. The file must be replaced,
    /// not changed in place, afterwards; what was changed is noticed before it is sent. A blob that is known costs its
    /// hash. On return the blob is on disk.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read or is no plain file, [`Error::NoSpace`], [`Error::Corrupt`] if it changed
    /// meanwhile.
    pub fn import_file(&self, path: &Path) -> Result<Blob> {
        let source = path.canonicalize().map_err(Error::io("find", path))?;
        let size = match fs::metadata(&source).map_err(Error::io("read", path))? {
            metadata if metadata.is_file() => metadata.len(),
            _ => return Err(Error::io("import", path)(io::Error::other("it is not a plain file"))),
        };
        let link = |target: &Path| fs::hard_link(&source, target);
        match tempfile::Builder::new().prefix(atomic::PREFIX).make_in(&self.layout.partial, link) {
            Ok(linked) => self.import(linked.into_temp_path()),
            Err(_) => {
                ensure_space(&self.layout.partial, size)?;
                let mut copy = atomic::temporary(&self.layout.partial)?;
                let mut file = File::open(&source).map_err(Error::io("read", path))?;
                io::copy(&mut file, copy.as_file_mut()).map_err(Error::fill("copy", path, size))?;
                self.import(copy.into_temp_path())
            }
        }
    }

    /// Takes bytes in as a blob. On return it is on disk.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn import_bytes(&self, bytes: &[u8]) -> Result<Blob> {
        let mut file = atomic::temporary(&self.layout.partial)?;
        file.write_all(bytes).map_err(Error::write(file.path(), bytes.len() as u64))?;
        self.import(file.into_temp_path())
    }

    fn import(&self, staged: TempPath) -> Result<Blob> {
        let data = File::open(&staged).map_err(Error::io("read", &staged))?;
        let mut tree = atomic::temporary(&self.layout.partial)?;
        let blob = hash(&staged, &data, tree.as_file_mut())?;
        if self.has_blob(blob.digest).is_none() {
            data.sync_all().map_err(Error::io("sync", &staged))?;
            tree.as_file().sync_all().map_err(Error::io("sync", tree.path()))?;
            atomic::publish(tree.into_temp_path(), &tree_in(&self.layout.blobs, blob.digest))?;
            atomic::publish(staged, &self.data_path(blob.digest))?;
            atomic::sync_folder(&self.layout.blobs)?;
        }
        Ok(blob)
    }

    /// The blob, if it is held whole.
    pub fn has_blob(&self, digest: Digest) -> Option<Blob> {
        let metadata = fs::metadata(self.data_path(digest)).ok().filter(fs::Metadata::is_file)?;
        Some(Blob { digest, size: metadata.len() })
    }

    /// The blob's file, if it is held whole. To be read, not written.
    pub fn blob_path(&self, digest: Digest) -> Option<PathBuf> {
        self.has_blob(digest).map(|_| self.data_path(digest))
    }

    /// All blobs held whole, by digest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn blobs(&self) -> Result<Vec<Blob>> {
        let mut digests = layout::digests(&self.layout.blobs, DATA)?;
        digests.sort();
        Ok(digests.into_iter().filter_map(|digest| self.has_blob(digest)).collect())
    }

    /// Opens a blob to send ranges of it; none if it is not held. A missing tree is computed anew.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] if the file is not what its name says.
    pub fn reader(&self, digest: Digest) -> Result<Option<BlobReader>> {
        let Some(blob) = self.has_blob(digest) else { return Ok(None) };
        let (data_path, tree_path) = (self.data_path(digest), tree_in(&self.layout.blobs, digest));
        let data = File::open(&data_path).map_err(Error::io("read", &data_path))?;
        if fs::metadata(&tree_path).map_or(0, |m| m.len()) != tree_of(blob.size).outboard_size() || !tree_path.exists()
        {
            tracing::warn!(path = %tree_path.display(), "a verification tree is missing: computing it");
            let mut tree = atomic::temporary(&self.layout.partial)?;
            if hash(&data_path, &data, tree.as_file_mut())?.digest != digest {
                return Err(Error::corrupt(&data_path, "its hash is not its name"));
            }
            atomic::publish(tree.into_temp_path(), &tree_path)?;
        }
        let tree = File::open(&tree_path).map_err(Error::io("read", &tree_path))?;
        Ok(Some(BlobReader::new(blob, data_path, data, tree)))
    }

    /// Removes trees whose blob never came, which a kill between the two renames leaves.
    pub(crate) fn remove_orphaned_trees(&self) -> Result<()> {
        for digest in layout::digests(&self.layout.blobs, TREE)? {
            if self.has_blob(digest).is_none() {
                atomic::remove(&tree_in(&self.layout.blobs, digest))?;
            }
        }
        Ok(())
    }
}

/// Streams `data` once: its tree goes to `tree`.
fn hash(path: &Path, data: &File, tree: &mut File) -> Result<Blob> {
    let length = || data.metadata().map(|m| m.len()).map_err(Error::io("read", path));
    let size = length()?;
    let mut output = BufWriter::with_capacity(BUFFER, tree);
    let root = outboard_post_order(BufReader::with_capacity(BUFFER, data), tree_of(size), &mut output)
        .and_then(|root| output.flush().map(|()| root))
        .map_err(Error::fill("hash", path, tree_of(size).outboard_size()))?;
    if length()? != size {
        return Err(Error::corrupt(path, "it changed while it was read"));
    }
    Ok(Blob { digest: Digest::from_bytes(root.into()), size })
}

pub(crate) fn data_in(folder: &Path, digest: Digest) -> PathBuf {
    folder.join(format!("{digest}{DATA}"))
}

pub(crate) fn tree_in(folder: &Path, digest: Digest) -> PathBuf {
    folder.join(format!("{digest}{TREE}"))
}

/// The shape of the verification tree of a blob with `size` bytes.
pub(crate) fn tree_of(size: u64) -> BaoTree {
    const LOG_CHUNKS: u8 = (GROUP / 1024).trailing_zeros() as u8;
    BaoTree::new(size, BlockSize::from_chunk_log(LOG_CHUNKS))
}

/// The chunks of all groups that `range` touches: what one side encodes and the other expects.
pub(crate) fn chunks(range: &Range<u64>) -> ChunkRanges {
    let (start, end) = (range.start / GROUP, range.end.div_ceil(GROUP));
    ChunkRanges::from(ChunkNum(start * (GROUP / 1024))..ChunkNum(end * (GROUP / 1024)))
}
