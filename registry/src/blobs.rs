//! Blobs: files under their BLAKE3 hash, each with its verification tree (post-order, 16 KiB groups) beside it.

use crate::{BlobReader, Error, GROUP, Registry, Result, atomic, error::ensure_space, layout};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, io::sync::outboard_post_order};
use hdd_protocol::{Blob, Digest};
use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Seek as _, Write},
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

    /// Takes a copy of a file in, which later changes to the file do not reach. A blob that is held is not copied; if
    /// what is held does not verify, the copy replaces it. On return the blob is on disk.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read or is no plain file, [`Error::NoSpace`], [`Error::Corrupt`] if it changed
    /// meanwhile.
    pub fn import_file(&self, path: &Path) -> Result<Blob> {
        let source = path.canonicalize().map_err(Error::io("find", path))?;
        if !fs::metadata(&source).map_err(Error::io("read", path))?.is_file() {
            return Err(Error::io("import", path)(io::Error::other("it is not a plain file")));
        }
        let mut file = File::open(&source).map_err(Error::io("read", path))?;
        let blob = hash(path, &file, io::sink())?;
        if self.verify_blob(blob.digest)?.is_some() {
            return Ok(blob);
        }
        ensure_space(&self.layout.partial, blob.size)?;
        let mut copy = atomic::temporary(&self.layout.partial)?;
        file.rewind().map_err(Error::io("read", path))?;
        io::copy(&mut file, copy.as_file_mut()).map_err(Error::fill("copy", path, blob.size))?;
        match self.import(copy.into_temp_path())? {
            copied if copied == blob => Ok(blob),
            _ => Err(Error::corrupt(path, "it changed while it was read")),
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
        if self.verify_blob(blob.digest)?.is_none() {
            let _guard = self.write_lock();
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

    /// The blob's file, if it is held whole and hashes to its name: what a fetch or an import relies on. One that does
    /// not is moved aside with a warning, together with its tree, and counts as not held, so that it can come again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verify_blob(&self, digest: Digest) -> Result<Option<PathBuf>> {
        let path = self.data_path(digest);
        if self.is_sound(digest)?.is_some_and(|sound| sound) {
            return Ok(Some(path));
        }
        // Again under the lock, since another thread may just have replaced it.
        let _guard = self.write_lock();
        match self.is_sound(digest)? {
            Some(true) => Ok(Some(path)),
            Some(false) => {
                self.layout.set_aside(&path, "its hash is not its name")?;
                self.layout.set_aside(&tree_in(&self.layout.blobs, digest), "its blob is damaged")?;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Whether the held file is what its name says; none if there is none.
    fn is_sound(&self, digest: Digest) -> Result<Option<bool>> {
        let path = self.data_path(digest);
        match File::open(&path) {
            Ok(data) => Ok(Some(hash(&path, &data, io::sink())?.digest == digest)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// The blob's file, if it is held whole; unlike [`Registry::verify_blob`] it is not read. To be read, not written.
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
fn hash(path: &Path, data: &File, tree: impl Write) -> Result<Blob> {
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
