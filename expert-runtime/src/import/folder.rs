//! Folders that hold a network: an import's own, and a checkpoint's, which has the same two files.

use super::{Imported, Record, digest_of};
use crate::{
    Error, Result,
    checkpoint::{FORMAT, check_format},
    error::At,
};
use hdd_protocol::{Digest, ExpertSpec};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

/// Largest description, bytes.
const DESCRIPTION_LIMIT: u64 = 1 << 20;

/// What `config.json` of an import and of a checkpoint have in common.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    format: u32,
    spec: ExpertSpec,
}

/// Weights that a run can begin from.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// What they are.
    pub spec: ExpertSpec,
    /// The safetensors file.
    pub model: PathBuf,
    /// The file that they come from: the source of an import, a checkpoint's own weights.
    pub parent: Digest,
    /// The charter's cluster, if one was chosen when they were imported.
    pub cluster: Option<u16>,
}

/// Opens the folder of an import or of a checkpoint.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] for a description that this build cannot read.
pub fn open(folder: &Path) -> Result<Beginning> {
    let Description { format, spec } = read_json(&folder.join("config.json"))?;
    check_format(folder, format)?;
    spec.check()?;
    let model = folder.join("model.safetensors");
    let record = folder.join("import.json");
    let (parent, cluster) = match record.exists() {
        true => read_json::<Record>(&record).map(|record| (record.parent, record.cluster))?,
        false => (digest_of(&model)?, None),
    };
    Ok(Beginning { spec, model, parent, cluster })
}

/// A small JSON file.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bad = |why: String| Error::Checkpoint { path: path.to_owned(), why };
    let size = fs::metadata(path).at("read", path)?.len();
    if size > DESCRIPTION_LIMIT {
        return Err(bad(format!("has {size} bytes, at most {DESCRIPTION_LIMIT} are read")));
    }
    let bytes = fs::read(path).at("read", path)?;
    serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not readable: {e}")))
}

impl Imported {
    /// Writes the import to the new folder `folder`, which appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] if the folder is there already.
    pub fn save(&self, folder: &Path) -> Result<()> {
        if folder.exists() {
            let why = "exists already; choose another folder or remove it".into();
            return Err(Error::Checkpoint { path: folder.to_owned(), why });
        }
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).at("create", parent)?;
        let work = tempfile::Builder::new().prefix(".saving-").tempdir_in(parent).at("create a folder in", parent)?;
        let description = Description { format: FORMAT, spec: self.expert.spec().clone() };
        write_json(&work.path().join("config.json"), &description)?;
        write_json(&work.path().join("import.json"), &self.record)?;
        self.expert.save(&work.path().join("model.safetensors"))?;
        fs::rename(work.path(), folder).at("rename to", folder)?;
        let _ = work.keep(); // moved away: nothing is left to clean up
        File::open(parent).and_then(|f| f.sync_all()).at("sync", parent)
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(value).map_err(std::io::Error::from).at("describe", path)?;
    let mut file = File::create_new(path).at("create", path)?;
    file.write_all(&json).and_then(|()| file.sync_all()).at("write", path)
}
