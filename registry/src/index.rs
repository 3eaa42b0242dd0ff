//! The sled database that answers questions about records without opening them.
//!
//! Its content is a function of the set of record files, whatever the order in which they came, so that it can be rebuilt
//! from them. One tree, in which the first byte of a key says what it is:
//!
//! | key | value |
//! |---|---|
//! | `r` record | the `e` or `v` key that it stands under |
//! | `e` author charter name | [`Head`]: the manifest with the highest sequence number; of a router under [`ROUTER`] |
//! | `v` author charter `m` manifest, or `n` name | the revocation; of several the one with the smallest digest |
//! | `q` author | [`Evidence`] of equivocation |

use crate::{Error, Result};
use hdd_protocol::{
    Digest, Manifest, PublicKey, Revocation, RevocationTarget, RouterManifest, Verified, decode, encode,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    fs,
    ops::Bound,
    panic,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// sled's own default is 1 GiB.
const CACHE_BYTES: u64 = 16 << 20;
const VALUE_LIMIT: usize = 256;

/// An author's router of a charter is filed under this name, which no expert can have.
pub(crate) const ROUTER: &str = "/router";

/// What a record is filed by that a later one of the same author, charter and name replaces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version<'a> {
    pub author: PublicKey,
    pub charter: Digest,
    pub name: &'a str,
    pub sequence: u64,
    pub expires_at: u64,
    pub digest: Digest,
}

impl<'a> Version<'a> {
    pub fn of_expert(m: &'a Verified<Manifest>) -> Self {
        Self {
            author: m.author,
            charter: m.charter,
            name: &m.name,
            sequence: m.sequence,
            expires_at: m.expires_at,
            digest: m.digest(),
        }
    }

    pub fn of_router(r: &Verified<RouterManifest>) -> Self {
        Self {
            author: r.author,
            charter: r.charter,
            name: ROUTER,
            sequence: r.sequence,
            expires_at: r.expires_at,
            digest: r.digest(),
        }
    }
}

/// Two manifests by one author with one sequence number, in the order of their digests.
pub(crate) type Evidence = [Digest; 2];

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub digest: Digest,
    pub sequence: u64,
    pub expires_at: u64,
}

pub(crate) struct Index {
    db: sled::Db,
    folder: std::path::PathBuf,
    totals: Mutex<Totals>,
}

/// What a full store is told by, without a walk over its entries for every record that it refuses.
#[derive(Default)]
struct Totals {
    manifests: usize,
    revocations: usize,
    /// No manifest expires before this.
    next_expiry: u64,
}

impl Index {
    /// Opens the index, or an empty one in place of one that does not open.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::try_open(folder).or_else(|error| {
            let aside = folder.with_extension("broken");
            tracing::warn!(%error, aside = %aside.display(), "the index does not open: moved aside, rebuilding it");
            let _ = fs::remove_dir_all(&aside);
            match fs::rename(folder, &aside) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("move aside", folder)(e)),
                _ => Self::try_open(folder),
            }
        })
    }

    /// sled panics on some damage that it meets, hence the guard, and a walk over all entries while it is in force.
    fn try_open(folder: &Path) -> Result<Self> {
        let open = || {
            let config = sled::Config::new().path(folder).cache_capacity(CACHE_BYTES);
            let db = config.open().map_err(|source| Error::Index { folder: folder.into(), source })?;
            let index = Self { db, folder: folder.into(), totals: Mutex::default() };
            index.check()?;
            Ok(index)
        };
        panic::catch_unwind(open).unwrap_or_else(|_| Err(Error::corrupt(folder, "sled gave up on it")))
    }

    /// What the other methods take for granted: known kinds, lengths, values that decode.
    fn check(&self) -> Result<()> {
        let mut totals = Totals::default();
        for (key, value) in self.scan(b"")? {
            let whole = match (key.first(), key.len()) {
                (Some(b'r'), 33) => value.len() > 65 && b"ev".contains(&value[0]),
                (Some(b'e'), 66..) => self.read::<Head>(&value).is_ok(),
                (Some(b'v'), 67..) => self.read::<Digest>(&value).is_ok(),
                (Some(b'q'), 33) => self.read::<Evidence>(&value).is_ok(),
                _ => false,
            };
            if !whole {
                return Err(Error::corrupt(&self.folder, "an entry makes no sense"));
            }
            totals.manifests += usize::from(key[0] == b'r' && value[0] == b'e');
            totals.revocations += usize::from(key[0] == b'r' && value[0] == b'v');
        }
        *self.totals() = totals;
        Ok(())
    }

    pub fn clear(&self) -> Result<()> {
        self.db.clear().map_err(|e| self.failed(e))?;
        *self.totals() = Totals::default();
        Ok(())
    }

    /// Manifests held, of all authors, of experts and routers.
    pub fn manifests(&self) -> usize {
        self.totals().manifests
    }

    /// Revocations held, of all authors.
    pub fn revocations(&self) -> usize {
        self.totals().revocations
    }

    /// Newest manifests of experts that have expired at `now`, but for authors that equivocated: those are evidence.
    pub fn expired(&self, now: u64) -> Result<Vec<Digest>> {
        if now < self.totals().next_expiry {
            return Ok(Vec::new());
        }
        let distrusted: BTreeSet<PublicKey> = self.equivocations()?.into_iter().map(|(author, _)| author).collect();
        let (mut expired, mut next_expiry) = (Vec::new(), u64::MAX);
        for (key, value) in self.scan(b"e")? {
            let head: Head = self.read(&value)?;
            if distrusted.contains(&PublicKey::from_bytes(self.array(&key[1..33])?)) {
                continue;
            }
            if head.expires_at <= now {
                expired.push(head.digest)
            } else {
                next_expiry = next_expiry.min(head.expires_at)
            }
        }
        self.totals().next_expiry = next_expiry;
        Ok(expired)
    }

    pub fn contains(&self, record: Digest) -> Result<bool> {
        self.db.contains_key(record_key(record)).map_err(|e| self.failed(e))
    }

    pub fn head(&self, author: PublicKey, charter: Digest, name: &str) -> Result<Option<Head>> {
        self.get(&expert_key(author, charter, name))
    }

    pub fn evidence(&self, author: PublicKey) -> Result<Option<Evidence>> {
        self.get(&key(b'q', &[author.as_bytes()]))
    }

    pub fn revocation(&self, r: &Revocation) -> Result<Option<Digest>> {
        self.get(&revocation_key(r))
    }

    /// The revocation that covers the manifest, if any.
    pub fn revoked(&self, author: PublicKey, charter: Digest, name: &str, digest: Digest) -> Result<Option<Digest>> {
        self.revoked_under(&expert_key(author, charter, name), digest)
    }

    fn revoked_under(&self, expert: &[u8], digest: Digest) -> Result<Option<Digest>> {
        let (owner, name) = expert[1..].split_at(64);
        let by_name = self.get(&key(b'v', &[owner, b"n", name]))?;
        Ok(if by_name.is_some() { by_name } else { self.get(&key(b'v', &[owner, b"m", digest.as_bytes()]))? })
    }

    /// Experts and routers that `author` has here.
    pub fn experts_of(&self, author: PublicKey) -> Result<Vec<Head>> {
        self.heads(&key(b'e', &[author.as_bytes()]))
    }

    /// Revocations that `author` has here.
    pub fn revocations_of(&self, author: PublicKey) -> Result<usize> {
        Ok(self.scan(&key(b'v', &[author.as_bytes()]))?.len())
    }

    /// The newest manifest of every expert, or of every router, that is not revoked and whose author is not distrusted, by
    /// author and name.
    pub fn current(&self, charter: Option<Digest>, routers: bool) -> Result<Vec<Digest>> {
        let distrusted: BTreeSet<PublicKey> = self.equivocations()?.into_iter().map(|(author, _)| author).collect();
        let mut digests = Vec::new();
        for (key, value) in self.scan(b"e")? {
            let of_charter = charter.is_none_or(|c| key[33..65] == c.as_bytes()[..]);
            let wanted = of_charter && routers == (key[65..] == *ROUTER.as_bytes());
            if wanted && !distrusted.contains(&PublicKey::from_bytes(self.array(&key[1..33])?)) {
                let head: Head = self.read(&value)?;
                if self.revoked_under(&key, head.digest)?.is_none() {
                    digests.push(head.digest);
                }
            }
        }
        Ok(digests)
    }

    /// Records in ascending order that peers may want: all but revoked manifests.
    pub fn page(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Digest>> {
        let start = after.map_or(Bound::Included(vec![b'r']), |d| Bound::Excluded(record_key(d)));
        let mut digests = Vec::new();
        for item in self.db.range((start, Bound::Excluded(vec![b'r' + 1]))) {
            if digests.len() >= limit {
                break;
            }
            let (key, under) = item.map_err(|e| self.failed(e))?;
            let digest = Digest::from_bytes(self.array(&key[1..])?);
            if under[0] != b'e' || self.revoked_under(&under, digest)?.is_none() {
                digests.push(digest);
            }
        }
        Ok(digests)
    }

    pub fn digests(&self) -> Result<BTreeSet<Digest>> {
        self.scan(b"r")?.iter().map(|(key, _)| Ok(Digest::from_bytes(self.array(&key[1..])?))).collect()
    }

    pub fn equivocations(&self) -> Result<Vec<(PublicKey, Evidence)>> {
        let entries = self.scan(b"q")?;
        let pair = |(key, value): &Entry| Ok((PublicKey::from_bytes(self.array(&key[1..])?), self.read(value)?));
        entries.iter().map(pair).collect()
    }

    /// Takes a record in; returns one that it made superfluous, which may be the record itself.
    pub fn add_version(&self, m: Version<'_>) -> Result<Option<Digest>> {
        let digest = m.digest;
        let key_of_expert = expert_key(m.author, m.charter, m.name);
        let mut head = Head { digest, sequence: m.sequence, expires_at: m.expires_at };
        let (mut batch, mut superfluous) = (sled::Batch::default(), None);
        match self.get::<Head>(&key_of_expert)? {
            Some(old) if old.sequence > m.sequence => return Ok(Some(digest)),
            Some(old) if old.sequence == m.sequence && old.digest != digest => {
                let evidence: Evidence = [old.digest.min(digest), old.digest.max(digest)];
                batch.insert(key(b'q', &[m.author.as_bytes()]), self.value(&evidence)?);
                head = if old.digest < digest { old } else { head };
            }
            Some(old) if old.digest != digest => {
                batch.remove(record_key(old.digest));
                superfluous = Some(old.digest);
            }
            _ => {}
        }
        batch.insert(record_key(digest), &key_of_expert[..]);
        batch.insert(key_of_expert, self.value(&head)?);
        let new = !self.contains(digest)?;
        self.apply(batch)?;
        let mut totals = self.totals();
        totals.manifests = (totals.manifests + usize::from(new)).saturating_sub(usize::from(superfluous.is_some()));
        totals.next_expiry = totals.next_expiry.min(m.expires_at);
        Ok(superfluous)
    }

    /// As [`Index::add_version`].
    pub fn add_revocation(&self, r: &Verified<Revocation>) -> Result<Option<Digest>> {
        let (digest, under) = (r.digest(), revocation_key(r));
        let mut batch = sled::Batch::default();
        let old = self.get::<Digest>(&under)?.filter(|old| *old != digest);
        match old {
            Some(old) if old < digest => return Ok(Some(digest)),
            Some(old) => batch.remove(record_key(old)),
            None => {}
        }
        batch.insert(record_key(digest), &under[..]);
        batch.insert(under, self.value(&digest)?);
        let new = !self.contains(digest)?;
        self.apply(batch)?;
        let mut totals = self.totals();
        totals.revocations = (totals.revocations + usize::from(new)).saturating_sub(usize::from(old.is_some()));
        Ok(old)
    }

    /// Forgets an expert whose newest manifest is `digest`.
    pub fn forget_expert(&self, digest: Digest) -> Result<()> {
        let record = record_key(digest);
        if let Some(under) = self.db.get(&record).map_err(|e| self.failed(e))? {
            let mut batch = sled::Batch::default();
            batch.remove(record);
            batch.remove(under);
            self.apply(batch)?;
            let mut totals = self.totals();
            totals.manifests = totals.manifests.saturating_sub(1);
        }
        Ok(())
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heads(&self, prefix: &[u8]) -> Result<Vec<Head>> {
        self.scan(prefix)?.iter().map(|(_, value)| self.read(value)).collect()
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Entry>> {
        self.db.scan_prefix(prefix).map(|item| item.map_err(|e| self.failed(e))).collect()
    }

    fn get<T: Serialize + DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        self.db.get(key).map_err(|e| self.failed(e))?.map(|value| self.read(&value)).transpose()
    }

    fn apply(&self, batch: sled::Batch) -> Result<()> {
        self.db.apply_batch(batch).map_err(|e| self.failed(e))
    }

    fn read<T: Serialize + DeserializeOwned>(&self, value: &[u8]) -> Result<T> {
        decode("index entry", value, VALUE_LIMIT).map_err(|e| Error::corrupt(&self.folder, e))
    }

    fn value<T: Serialize>(&self, value: &T) -> Result<Vec<u8>> {
        encode(value).map_err(|e| Error::corrupt(&self.folder, e))
    }

    fn array(&self, bytes: &[u8]) -> Result<[u8; 32]> {
        bytes.try_into().map_err(|_| Error::corrupt(&self.folder, "a key has the wrong length"))
    }

    fn failed(&self, source: sled::Error) -> Error {
        Error::Index { folder: self.folder.clone(), source }
    }
}

type Entry = (sled::IVec, sled::IVec);

fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![kind];
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

fn record_key(digest: Digest) -> Vec<u8> {
    key(b'r', &[digest.as_bytes()])
}

fn expert_key(author: PublicKey, charter: Digest, name: &str) -> Vec<u8> {
    key(b'e', &[author.as_bytes(), charter.as_bytes(), name.as_bytes()])
}

fn revocation_key(r: &Revocation) -> Vec<u8> {
    let (kind, target): (&[u8], &[u8]) = match &r.target {
        RevocationTarget::Manifest(digest) => (b"m", digest.as_bytes()),
        RevocationTarget::Expert(name) => (b"n", name.as_bytes()),
    };
    key(b'v', &[r.author.as_bytes(), r.charter.as_bytes(), kind, target])
}
