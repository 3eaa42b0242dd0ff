//! Signed records: one file each, named by its digest, whose content is the envelope.

use crate::{
    Error, Registry, RegistryOptions, Result, atomic,
    index::{Head, ROUTER, Version},
    layout, write_atomically,
};
use hdd_protocol::{
    Announcement, Charter, Digest, Manifest, PublicKey, Revocation, RouterManifest, Signed, SignedPayload, Verified,
};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::MutexGuard,
};

/// What an insertion changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// A record that was not there before.
    New,
    /// Nothing: it, or one that says the same, is held.
    Known,
    /// It took the place of this record.
    Replaced(Digest),
}

pub(crate) enum Record {
    Manifest(Box<Verified<Manifest>>),
    Router(Box<Verified<RouterManifest>>),
    Revocation(Verified<Revocation>),
}

impl Registry {
    fn record_path(&self, digest: Digest) -> PathBuf {
        self.layout.records.join(digest.to_string())
    }

    /// Takes a manifest in. `now`, Unix seconds, decides which manifests have expired and make room when the author or
    /// the store has reached its quota. An accepted manifest is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::Revoked`]; [`Error::Stale`] below the highest sequence number known for author, charter and name;
    /// [`Error::Equivocation`] for another manifest with that number, and from then on for everything by that author;
    /// [`Error::Quota`]; [`Error::Io`] and [`Error::NoSpace`].
    pub fn insert_manifest(&self, m: &Verified<Manifest>, now: u64) -> Result<Inserted> {
        self.insert_version(Version::of_expert(m), m.bytes(), now)
    }

    /// Takes a router's manifest in, as [`Registry::insert_manifest`] does an expert's; it counts as one expert of its
    /// author's.
    ///
    /// # Errors
    /// As [`Registry::insert_manifest`].
    pub fn insert_router(&self, r: &Verified<RouterManifest>, now: u64) -> Result<Inserted> {
        self.insert_version(Version::of_router(r), r.bytes(), now)
    }

    fn insert_version(&self, m: Version<'_>, bytes: &[u8], now: u64) -> Result<Inserted> {
        let digest = m.digest;
        let guard = self.write_lock();
        if let Some(revocation) = self.index.revoked(m.author, m.charter, m.name, digest)? {
            return Err(Error::Revoked { manifest: digest, revocation });
        }
        if let Some(evidence) = self.index.evidence(m.author)? {
            return Err(Error::Equivocation { author: m.author, evidence });
        }
        let head = self.index.head(m.author, m.charter, m.name)?;
        match head {
            Some(head) if head.digest == digest => return Ok(Inserted::Known),
            Some(Head { sequence: highest, .. }) if highest > m.sequence => {
                let (name, sequence) = (m.name.trim_start_matches('/').to_owned(), m.sequence);
                return Err(Error::Stale { author: m.author, name, sequence, highest });
            }
            Some(_) => {}
            None => self.make_room(m.author, now)?,
        }
        let replaced = self.store(&guard, digest, bytes, || self.index.add_version(m))?;
        match self.index.evidence(m.author)? {
            Some(evidence) => Err(Error::Equivocation { author: m.author, evidence }),
            None => Ok(replaced.map_or(Inserted::New, Inserted::Replaced)),
        }
    }

    /// Takes a revocation in; it wins for ever over every manifest that it covers, held or still to come.
    ///
    /// # Errors
    /// [`Error::Quota`]; [`Error::Io`] and [`Error::NoSpace`].
    pub fn insert_revocation(&self, r: &Verified<Revocation>) -> Result<Inserted> {
        let digest = r.digest();
        let guard = self.write_lock();
        let RegistryOptions { records_per_author: limit, records } = self.options;
        match self.index.revocation(r)? {
            // Of two that say the same all nodes keep the same one, so that they need not exchange them again.
            Some(held) if held <= digest => return Ok(Inserted::Known),
            Some(_) => {}
            None if self.index.revocations_of(r.author)? >= limit => {
                return Err(Error::Quota { author: Some(r.author), limit });
            }
            None if self.index.revocations() >= records => return Err(Error::Quota { author: None, limit: records }),
            None => {}
        }
        let replaced = self.store(&guard, digest, r.bytes(), || self.index.add_revocation(r))?;
        Ok(replaced.map_or(Inserted::New, Inserted::Replaced))
    }

    /// File first, then index, then the superfluous file: a crash in between leaves what [`Registry::reconcile`] mends.
    fn store(
        &self,
        _: &MutexGuard<'_, ()>,
        digest: Digest,
        bytes: &[u8],
        add: impl FnOnce() -> Result<Option<Digest>>,
    ) -> Result<Option<Digest>> {
        write_atomically(&self.record_path(digest), bytes)?;
        let superfluous = add()?;
        superfluous.map_or(Ok(()), |old| atomic::remove(&self.record_path(old)))?;
        Ok(superfluous)
    }

    fn make_room(&self, author: PublicKey, now: u64) -> Result<()> {
        let RegistryOptions { records_per_author: limit, records } = self.options;
        let experts = self.index.experts_of(author)?;
        if experts.len() >= limit {
            let expired = experts.iter().filter(|head| head.expires_at <= now).min_by_key(|head| head.expires_at);
            self.forget(expired.ok_or(Error::Quota { author: Some(author), limit })?.digest)?;
        }
        if self.index.manifests() >= records {
            self.index.expired(now)?.into_iter().try_for_each(|digest| self.forget(digest))?;
        }
        if self.index.manifests() < records { Ok(()) } else { Err(Error::Quota { author: None, limit: records }) }
    }

    fn forget(&self, newest: Digest) -> Result<()> {
        self.index.forget_expert(newest)?;
        atomic::remove(&self.record_path(newest))
    }

    /// The manifest with this digest, checked again as it is read. One whose file is damaged is moved aside with a
    /// warning and counts as not held, so that it can be fetched again.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Index`].
    pub fn manifest(&self, digest: Digest) -> Result<Option<Verified<Manifest>>> {
        Ok(match self.load(digest)? {
            Some(Record::Manifest(m)) => Some(*m),
            _ => None,
        })
    }

    /// The newest manifest of every expert, of one charter or of all, by author and name. Those revoked and those of
    /// authors that equivocated are left out; whether one has expired the caller sees with [`Manifest::check_against`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Index`].
    pub fn manifests(&self, charter: Option<Digest>) -> Result<Vec<Verified<Manifest>>> {
        let current = self.index.current(charter, false)?;
        current.into_iter().filter_map(|digest| self.manifest(digest).transpose()).collect()
    }

    /// The router's manifest with this digest, as [`Registry::manifest`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Index`].
    pub fn router(&self, digest: Digest) -> Result<Option<Verified<RouterManifest>>> {
        Ok(match self.load(digest)? {
            Some(Record::Router(r)) => Some(*r),
            _ => None,
        })
    }

    /// The newest router of every author, as [`Registry::manifests`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Index`].
    pub fn routers(&self, charter: Option<Digest>) -> Result<Vec<Verified<RouterManifest>>> {
        let current = self.index.current(charter, true)?;
        current.into_iter().filter_map(|digest| self.router(digest).transpose()).collect()
    }

    /// Whether nothing speaks against a router: no revocation of this manifest, and no equivocation of its author's. One that was
    /// replaced, and one that has expired, still stand.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn router_stands(&self, r: &Verified<RouterManifest>) -> Result<bool> {
        let revoked = self.index.revoked(r.author, r.charter, ROUTER, r.digest())?.is_some();
        Ok(!revoked && self.index.evidence(r.author)?.is_none())
    }

    /// The sequence number that the author's next manifest of this name must have: one above the highest known, or 1.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn next_sequence(&self, author: PublicKey, charter: Digest, name: &str) -> Result<u64> {
        Ok(self.index.head(author, charter, name)?.map_or(1, |head| head.sequence.saturating_add(1)))
    }

    /// As [`Registry::next_sequence`], of the author's router.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn next_router_sequence(&self, author: PublicKey, charter: Digest) -> Result<u64> {
        self.next_sequence(author, charter, ROUTER)
    }

    /// Authors that signed two manifests with one sequence number, and the digests of both, which [`Registry::record`]
    /// still returns as evidence.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn equivocations(&self) -> Result<Vec<(PublicKey, [Digest; 2])>> {
        self.index.equivocations()
    }

    /// At most `limit` digests of manifests, of experts and routers, and revocations, ascending, beginning after `after`. Revoked manifests are
    /// left out: their revocations say all that a peer needs.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn record_digests(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Digest>> {
        self.index.page(after, limit)
    }

    /// The record with this digest, as it travels.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Index`].
    pub fn record(&self, digest: Digest) -> Result<Option<Announcement>> {
        Ok(self.load(digest)?.map(|record| match record {
            Record::Manifest(m) => Announcement::Manifest(m.bytes().to_vec()),
            Record::Router(r) => Announcement::Router(r.bytes().to_vec()),
            Record::Revocation(r) => Announcement::Revocation(r.bytes().to_vec()),
        }))
    }

    fn load(&self, digest: Digest) -> Result<Option<Record>> {
        if !self.index.contains(digest)? {
            return Ok(None);
        }
        match read_record(&self.record_path(digest), digest) {
            Ok(Some(record)) => Ok(Some(record)),
            Ok(None) | Err(Error::Corrupt { .. }) => {
                // Under the lock, since a newer version may just have replaced it.
                let guard = self.write_lock();
                if self.index.contains(digest)? { self.reread(&guard, digest) } else { Ok(None) }
            }
            Err(error) => Err(error),
        }
    }

    fn reread(&self, guard: &MutexGuard<'_, ()>, digest: Digest) -> Result<Option<Record>> {
        let path = self.record_path(digest);
        match read_record(&path, digest) {
            Err(Error::Corrupt { why, .. }) => self.layout.set_aside(&path, &why)?,
            Ok(None) => {}
            other => return other,
        }
        self.reconcile(guard)?;
        Ok(None)
    }

    /// Makes the index agree with the files.
    pub(crate) fn reconcile(&self, _: &MutexGuard<'_, ()>) -> Result<()> {
        let held: BTreeSet<Digest> = layout::digests(&self.layout.records, "")?.into_iter().collect();
        let mut known = self.index.digests()?;
        if !known.is_subset(&held) {
            tracing::warn!(folder = %self.layout.records.display(), "record files are gone: rebuilding the index");
            self.index.clear()?;
            known.clear();
        }
        let missing: Vec<_> = held.difference(&known).copied().collect();
        if !missing.is_empty() {
            tracing::warn!(records = missing.len(), "the index lacked records: reading them from their files");
        }
        for digest in missing {
            let path = self.record_path(digest);
            match read_record(&path, digest) {
                Ok(Some(record)) => {
                    let superfluous = match &record {
                        Record::Manifest(m) => self.index.add_version(Version::of_expert(m))?,
                        Record::Router(r) => self.index.add_version(Version::of_router(r))?,
                        Record::Revocation(r) => self.index.add_revocation(r)?,
                    };
                    superfluous.map_or(Ok(()), |old| atomic::remove(&self.record_path(old)))?;
                }
                Ok(None) => {}
                Err(Error::Corrupt { why, .. }) => self.layout.set_aside(&path, &why)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Keeps a charter.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn insert_charter(&self, charter: &Verified<Charter>) -> Result<()> {
        let path = self.layout.charters.join(charter.digest().to_string());
        if path.exists() { Ok(()) } else { write_atomically(&path, charter.bytes()) }
    }

    /// The charter with this digest. One whose file is damaged is moved aside and counts as not held.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn charter(&self, digest: Digest) -> Result<Option<Verified<Charter>>> {
        let path = self.layout.charters.join(digest.to_string());
        let Some(bytes) = read_at_most(&path, Charter::LIMIT)? else { return Ok(None) };
        match open_envelope(&path, &bytes, digest) {
            Err(Error::Corrupt { why, .. }) => self.layout.set_aside(&path, &why).map(|()| None),
            other => other.map(Some),
        }
    }

    /// All charters held, by digest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn charters(&self) -> Result<Vec<Verified<Charter>>> {
        let mut digests = layout::digests(&self.layout.charters, "")?;
        digests.sort();
        digests.into_iter().filter_map(|digest| self.charter(digest).transpose()).collect()
    }
}

/// The digest, which covers the type's domain, tells the types apart.
fn read_record(path: &Path, digest: Digest) -> Result<Option<Record>> {
    let Some(bytes) = read_at_most(path, Manifest::LIMIT)? else { return Ok(None) };
    let record = if is_a::<Manifest>(&bytes, digest) {
        Record::Manifest(Box::new(open_envelope(path, &bytes, digest)?))
    } else if is_a::<RouterManifest>(&bytes, digest) {
        Record::Router(Box::new(open_envelope(path, &bytes, digest)?))
    } else {
        Record::Revocation(open_envelope(path, &bytes, digest)?)
    };
    Ok(Some(record))
}

fn is_a<T: SignedPayload>(bytes: &[u8], digest: Digest) -> bool {
    Signed::<T>::from_bytes(bytes).is_ok_and(|signed| signed.digest() == digest)
}

fn open_envelope<T: SignedPayload>(path: &Path, bytes: &[u8], digest: Digest) -> Result<Verified<T>> {
    let verified = Signed::<T>::from_bytes(bytes).and_then(Signed::verify).map_err(|e| Error::corrupt(path, e))?;
    if verified.digest() == digest { Ok(verified) } else { Err(Error::corrupt(path, "it is not what its name says")) }
}

/// A file of at most `limit` bytes; one byte more is read of a longer one, which no decoder then accepts.
fn read_at_most(path: &Path, limit: usize) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}
