//! A blob on its way in. Every group is verified before it is written, so that what lies in `partial/` is never wrong, and
//! nothing else has to be kept for a resume: what is there is verified again.

use crate::{
    Error, GROUP, Registry, Result, atomic,
    blobs::{chunks, data_in, tree_in, tree_of},
    error::ensure_space,
    layout::Layout,
};
use bao_tree::{
    ChunkRanges,
    io::{
        BaoContentItem, DecodeError,
        outboard::PostOrderOutboard,
        sync::{DecodeResponseIter, OutboardMut as _, WriteAt as _, valid_ranges},
    },
};
use hdd_protocol::{Blob, Digest};
use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// A blob that is arriving. Dropped before [`Download::finish`] it keeps what has come for the next
/// [`Registry::begin_download`].
pub struct Download {
    blob: Blob,
    data: File,
    tree: PostOrderOutboard<File>,
    /// Whether each group is there.
    groups: Vec<bool>,
    done: u64,
    layout: Layout,
    _lease: Lease,
}

impl Registry {
    /// Begins to fetch `blob`, or goes on where an earlier download stopped. If the blob is already held, the download
    /// is complete from the start.
    ///
    /// # Errors
    /// [`Error::NoSpace`] unless what is missing and a tenth more fit on the disk; [`Error::Busy`] while another download
    /// of it lives; [`Error::WrongSize`] if it is held with another size; [`Error::Io`].
    pub fn begin_download(&self, blob: Blob) -> Result<Download> {
        let Blob { digest, size } = blob;
        let lease = Lease::take(&self.downloads, digest)?;
        let held = self.has_blob(digest);
        if let Some(Blob { size: actual, .. }) = held.filter(|held| held.size != size) {
            return Err(Error::WrongSize { digest, claimed: size, actual });
        }
        let folder = if held.is_some() { &self.layout.blobs } else { &self.layout.partial };
        let path = data_in(folder, digest);
        let resumed = fs::metadata(&path).is_ok_and(|m| m.len() == size);
        if !resumed {
            ensure_space(folder, size)?;
        }
        let open = |path: PathBuf| {
            let mut options = fs::OpenOptions::new();
            options.read(true).write(held.is_none()).create(held.is_none()).truncate(!resumed);
            options.open(&path).map_err(Error::io("open", &path))
        };
        // The tree of a blob that is held is not looked at here, and may be missing.
        let tree_path = if held.is_some() { path.clone() } else { tree_in(folder, digest) };
        let (data, tree) = (open(path.clone())?, open(tree_path)?);
        let root = (*digest.as_bytes()).into();
        let tree = PostOrderOutboard { root, tree: tree_of(size), data: tree };
        let groups = vec![held.is_some(); size.div_ceil(GROUP) as usize];
        let done = if held.is_some() { size } else { 0 };
        let mut download = Download { blob, data, tree, groups, done, layout: self.layout.clone(), _lease: lease };
        if held.is_none() {
            download.data.set_len(size).map_err(Error::write(&path, size))?;
            if resumed {
                download.find_verified()?;
                ensure_space(folder, size - download.done)?;
            }
        }
        Ok(download)
    }
}

impl Download {
    /// Bytes verified and written.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.blob.size
    }

    /// The first range that is missing, in whole groups of 16 KiB, at most `piece` bytes but at least one group; none when
    /// all is there.
    pub fn missing(&self, piece: u64) -> Option<Range<u64>> {
        let first = self.groups.iter().position(|have| !have)?;
        let limit = (piece / GROUP).max(1);
        let count = self.groups[first..].iter().take_while(|have| !**have).count() as u64;
        let start = first as u64 * GROUP;
        Some(start..(start + count.min(limit) * GROUP).min(self.blob.size))
    }

    /// Reads the encoding of `range` as [`crate::BlobReader::encode_range`] writes it, verifying each group before it is
    /// written. Returns the bytes that were new. `range` begins at a multiple of 16 KiB and ends at one or at the end.
    ///
    /// # Errors
    /// [`Error::WrongBytes`] or [`Error::Stream`] at the first group that does not match or does not come: those before it
    /// are kept. [`Error::BadRange`]; [`Error::Io`] and [`Error::NoSpace`] from the disk.
    pub fn write_range(&mut self, range: Range<u64>, encoded: &mut impl io::Read) -> Result<u64> {
        let Blob { digest, size } = self.blob;
        let whole = range.start.is_multiple_of(GROUP) && (range.end.is_multiple_of(GROUP) || range.end == size);
        if !whole || range.start >= range.end || range.end > size {
            let len = range.end.saturating_sub(range.start);
            return Err(Error::BadRange { digest, start: range.start, len, size });
        }
        let (before, ranges) = (self.done, chunks(&range));
        if before == size {
            return Ok(0);
        }
        let path = data_in(&self.layout.partial, digest);
        let mut offset = range.start;
        for item in DecodeResponseIter::new(self.tree.root, self.tree.tree, encoded, &ranges) {
            match item {
                Ok(BaoContentItem::Parent(parent)) => {
                    self.tree.save(parent.node, &parent.pair).map_err(Error::write(&path, size - self.done))?;
                }
                Ok(BaoContentItem::Leaf(leaf)) => {
                    self.data.write_all_at(leaf.offset, &leaf.data).map_err(Error::write(&path, size - self.done))?;
                    self.mark(leaf.offset);
                    offset = leaf.offset + leaf.data.len() as u64;
                }
                Err(DecodeError::ParentHashMismatch(_) | DecodeError::LeafHashMismatch(_)) => {
                    return Err(Error::WrongBytes { digest, offset });
                }
                Err(error) => return Err(Error::Stream { digest, offset, source: error.into() }),
            }
        }
        Ok(self.done - before)
    }

    /// Makes the blob visible under its hash. On return it is on disk.
    ///
    /// # Errors
    /// [`Error::Incomplete`]; [`Error::WrongBytes`] for an empty blob under another hash than that of nothing;
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn finish(self) -> Result<Blob> {
        let Self { blob, data, tree, done, layout, _lease, .. } = self;
        let Blob { digest, size } = blob;
        if done < size {
            return Err(Error::Incomplete { digest, done, size });
        }
        if size == 0 && digest != Digest::of(&[]) {
            return Err(Error::WrongBytes { digest, offset: 0 });
        }
        let names = [tree_in, data_in].map(|name| (name(&layout.partial, digest), name(&layout.blobs, digest)));
        if names[1].1.exists() {
            names.iter().try_for_each(|(from, _)| atomic::remove(from))?;
            return Ok(blob);
        }
        for (file, (from, _)) in [&tree.data, &data].into_iter().zip(&names) {
            file.sync_all().map_err(Error::write(from, size))?;
        }
        drop((data, tree)); // some systems do not rename open files
        for (from, to) in &names {
            fs::rename(from, to).map_err(Error::io("rename", from))?;
        }
        atomic::sync_folder(&layout.blobs)?;
        Ok(blob)
    }

    fn mark(&mut self, offset: u64) {
        let group = &mut self.groups[(offset / GROUP) as usize];
        if !std::mem::replace(group, true) {
            self.done += GROUP.min(self.blob.size - offset);
        }
    }

    fn find_verified(&mut self) -> Result<()> {
        let path = data_in(&self.layout.partial, self.blob.digest);
        let all = ChunkRanges::all();
        let verified = valid_ranges(&self.tree, &self.data, &all).into_iter();
        let verified: Vec<_> = verified.collect::<io::Result<_>>().map_err(Error::io("read", &path))?;
        for range in verified {
            let end = range.end.to_bytes().min(self.blob.size);
            (range.start.to_bytes()..end).step_by(GROUP as usize).for_each(|offset| self.mark(offset));
        }
        Ok(())
    }
}

/// The right to write one blob's partial files.
struct Lease {
    downloads: Arc<Mutex<HashSet<Digest>>>,
    digest: Digest,
}

impl Lease {
    fn take(downloads: &Arc<Mutex<HashSet<Digest>>>, digest: Digest) -> Result<Self> {
        let new = downloads.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        if new { Ok(Self { downloads: downloads.clone(), digest }) } else { Err(Error::Busy { digest }) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.downloads.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}
