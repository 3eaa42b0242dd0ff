//! Files that appear whole or not at all.

use crate::{Error, Result};
use std::{fs, io::Write as _, path::Path};
use tempfile::{NamedTempFile, TempPath};

/// Begins the names of unfinished files, which [`remove_temporaries`] knows by it.
pub(crate) const PREFIX: &str = ".tmp-";

/// Writes `bytes` to `path`, replacing what is there: after a crash at any moment the old content or the new is there,
/// whole. On return it has reached the disk. Only the owner may read a file made this way.
///
/// # Errors
/// [`Error::Io`] with the path; [`Error::NoSpace`] on a full disk. The old content is then untouched.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary(parent(path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::write(path, bytes.len() as u64))?;
    publish(file.into_temp_path(), path)?;
    sync_folder(parent(path))
}

/// A file in `folder` that goes away unless it is published.
pub(crate) fn temporary(folder: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder).map_err(Error::io("create a file in", folder))
}

/// Gives a finished, synced file its name; [`sync_folder`] makes the name last.
pub(crate) fn publish(file: TempPath, path: &Path) -> Result<()> {
    file.persist(path).map_err(|e| Error::io("write", path)(e.error))
}

/// Makes new names in `folder` last.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = fs::File::open(folder).and_then(|f| f.sync_all());
        synced.map_err(Error::io("sync", folder))?;
    }
    Ok(())
}

/// Removes what a killed process left unfinished in `folder`.
pub(crate) fn remove_temporaries(folder: &Path) -> Result<()> {
    for name in names(folder)?.iter().filter(|name| name.starts_with(PREFIX)) {
        remove(&folder.join(name))?;
    }
    Ok(())
}

/// Removes a file; fine if there is none.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Names in `folder` that are text, as all of ours are.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().ok())).collect();
    let names: std::io::Result<Vec<Option<String>>> = list();
    Ok(names.map_err(Error::io("list", folder))?.into_iter().flatten().collect())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
