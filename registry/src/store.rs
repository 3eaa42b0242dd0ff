use crate::{Result, index::Index, layout::Layout, verdicts};
use hdd_protocol::Digest;
use std::{
    collections::HashSet,
    fs::File,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bounds of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Most experts, and apart from them most revocations, that one key may have.
    pub records_per_author: usize,
    /// Most manifests, and apart from them most revocations, by all keys together. A second manifest that proves an
    /// equivocation is taken beyond it, which is one a key.
    pub records: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self { records_per_author: 1000, records: 100_000 }
    }
}

/// A node's store. All methods block, take `&self` and may be called from several threads.
pub struct Registry {
    pub(crate) layout: Layout,
    pub(crate) index: Index,
    pub(crate) options: RegistryOptions,
    /// Digests of running downloads.
    pub(crate) downloads: Arc<Mutex<HashSet<Digest>>>,
    /// Held while records, index and the set of blobs change.
    writing: Mutex<()>,
    _lock: File,
}

impl Registry {
    /// Opens the store in `folder`, which is created if need be, with the default [`RegistryOptions`].
    ///
    /// An index that does not open, or disagrees with the record files, is rebuilt from them with a warning.
    ///
    /// # Errors
    /// [`crate::Error::InUse`] while another node has it open, [`crate::Error::Layout`] for a folder of a later version,
    /// [`crate::Error::Io`] if the folder cannot be used.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_with(folder, RegistryOptions::default())
    }

    /// [`Registry::open`] with other bounds.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn open_with(folder: &Path, options: RegistryOptions) -> Result<Self> {
        let (layout, lock) = Layout::open(folder)?;
        let index = Index::open(&layout.index)?;
        let (downloads, writing) = Default::default();
        let registry = Self { layout, index, options, downloads, writing, _lock: lock };
        registry.reconcile(&registry.write_lock())?;
        verdicts::prune(&registry)?;
        registry.remove_orphaned_trees()?;
        Ok(registry)
    }

    /// The folder that the store lives in.
    pub fn folder(&self) -> &Path {
        &self.layout.root
    }

    pub(crate) fn write_lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
