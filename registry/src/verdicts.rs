//! Admission bookkeeping: what this node's own checks said of a manifest.

use crate::{Error, Registry, Result, atomic, layout, write_atomically};
use hdd_protocol::Digest;
use serde::{Deserialize, Serialize};
use std::{fs, io, path::PathBuf};

const SUFFIX: &str = ".json";

/// How far admission has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictState {
    /// Not yet checked, or in the middle of it.
    Pending,
    /// Passed every check.
    Admitted,
    /// Failed one.
    Refused,
}

/// What this node's checks said of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The outcome.
    pub state: VerdictState,
    /// Why, for people.
    pub reason: String,
    /// The expert's denoising loss on held-out data.
    pub held_out_loss: Option<f32>,
    /// The loss that it had to beat.
    pub baseline_loss: Option<f32>,
    /// Unix seconds.
    pub checked_at: u64,
}

impl Registry {
    fn verdict_path(&self, manifest: Digest) -> PathBuf {
        self.layout.verdicts.join(format!("{manifest}{SUFFIX}"))
    }

    /// Keeps a verdict, replacing the one before. It goes when the manifest is no longer held.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn set_verdict(&self, manifest: Digest, verdict: &Verdict) -> Result<()> {
        let path = self.verdict_path(manifest);
        let json = serde_json::to_vec_pretty(verdict).map_err(|e| Error::corrupt(&path, e))?;
        write_atomically(&path, &json)
    }

    /// The verdict on a manifest; none if it was never checked or the file is damaged, in which case it is moved aside.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verdict(&self, manifest: Digest) -> Result<Option<Verdict>> {
        let path = self.verdict_path(manifest);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        match serde_json::from_slice(&json) {
            Ok(verdict) => Ok(Some(verdict)),
            Err(e) => self.layout.set_aside(&path, &e.to_string()).map(|()| None),
        }
    }
}

/// Removes verdicts on manifests that are no longer held.
pub(crate) fn prune(registry: &Registry) -> Result<()> {
    for digest in layout::digests(&registry.layout.verdicts, SUFFIX)? {
        if !registry.index.contains(digest)? {
            atomic::remove(&registry.verdict_path(digest))?;
        }
    }
    Ok(())
}
