//! The one door for records: from gossip, from reconciliation and from this node's own commands. Nothing is stored or
//! passed on that has not come through.

use super::{Client, Error, Event, Result, task::blocking};
use hdd_protocol::{
    Announcement, Charter, Digest, Manifest, Revocation, RouterManifest, Signed, SignedPayload, SyncRequest,
    SyncResponse, Verified, decode,
};
use hdd_registry::{Inserted, Registry};
use libp2p::{PeerId, gossipsub::MessageAcceptance};
use std::sync::Arc;

/// Judges records and stores those that pass.
#[derive(Clone)]
pub(super) struct Intake {
    pub client: Client,
}

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It breaks the protocol's rules or its charter's, whenever it is looked at.
    #[error(transparent)]
    Invalid(#[from] hdd_protocol::Error),
    /// Its time has passed or has not come.
    #[error("{0}")]
    Untimely(hdd_protocol::Error),
    /// Its charter cannot be had.
    #[error("{0}")]
    UnknownCharter(Error),
    /// This node has it.
    #[error("known")]
    Known,
    /// Superseded, revoked, contradicted by its author, or the disk failed.
    #[error(transparent)]
    Registry(#[from] hdd_registry::Error),
}

impl Refusal {
    /// What gossip is told: Reject blames the sender, Ignore does not; neither is forwarded.
    pub(super) fn verdict(&self) -> MessageAcceptance {
        use hdd_protocol::Error as E;
        match self {
            Self::Invalid(
                E::Malformed { .. }
                | E::NotCanonical { .. }
                | E::TooLarge { .. }
                | E::BadSignature { .. }
                | E::WrongSigner { .. }
                | E::OutOfRange { .. }
                | E::WrongCharter { .. }
                | E::BadText { .. },
            ) => MessageAcceptance::Reject,
            Self::Invalid(E::UnsupportedVersion { .. })
            | Self::Untimely(_)
            | Self::UnknownCharter(_)
            | Self::Known
            | Self::Registry(_) => MessageAcceptance::Ignore,
        }
    }

    /// What this node's own user is told; nothing of a record that is already here.
    pub(super) fn into_error(self) -> Option<Error> {
        match self {
            Self::Invalid(error) | Self::Untimely(error) => Some(error.into()),
            Self::UnknownCharter(error) => Some(error),
            Self::Registry(error) => Some(error.into()),
            Self::Known => None,
        }
    }
}

impl Intake {
    /// As [`Intake::take`], from the bytes of a gossip message.
    pub(super) async fn take_bytes(&self, bytes: &[u8], from: PeerId) -> Result<Digest, Refusal> {
        self.take(decode("announcement", bytes, Announcement::LIMIT)?, Some(from)).await
    }

    /// Verifies a record, checks it against its charter, which `from` is asked for if need be, and stores it.
    pub(super) async fn take(&self, record: Announcement, from: Option<PeerId>) -> Result<Digest, Refusal> {
        match record {
            Announcement::Manifest(bytes) => self.take_manifest(verify(&bytes)?, from).await,
            Announcement::Revocation(bytes) => self.take_revocation(verify(&bytes)?, from).await,
            Announcement::Router(bytes) => self.take_router(verify(&bytes)?, from).await,
        }
    }

    async fn take_manifest(&self, manifest: Verified<Manifest>, from: Option<PeerId>) -> Result<Digest, Refusal> {
        let digest = manifest.digest();
        self.is_new(digest).await?;
        let charter = self.charter(manifest.charter, from).await?;
        let now = (self.client.shared.now)();
        judge(|at| manifest.check_against(&charter, at), now, manifest.issued_at)?;
        let registry = self.registry();
        let inserted = blocking(move || registry.insert_manifest(&manifest, now)).await?;
        self.report(inserted, digest, Event::ManifestArrived(digest))
    }

    async fn take_router(&self, router: Verified<RouterManifest>, from: Option<PeerId>) -> Result<Digest, Refusal> {
        let digest = router.digest();
        self.is_new(digest).await?;
        let charter = self.charter(router.charter, from).await?;
        let now = (self.client.shared.now)();
        judge(|at| router.check_against(&charter, at), now, router.issued_at)?;
        let registry = self.registry();
        let inserted = blocking(move || registry.insert_router(&router, now)).await?;
        self.report(inserted, digest, Event::RouterArrived(digest))
    }

    async fn take_revocation(&self, revocation: Verified<Revocation>, from: Option<PeerId>) -> Result<Digest, Refusal> {
        let digest = revocation.digest();
        self.is_new(digest).await?;
        self.charter(revocation.charter, from).await?;
        let registry = self.registry();
        let inserted = blocking(move || registry.insert_revocation(&revocation)).await?;
        self.report(inserted, digest, Event::RevocationArrived(digest))
    }

    fn registry(&self) -> Arc<Registry> {
        self.client.registry().clone()
    }

    async fn is_new(&self, digest: Digest) -> Result<(), Refusal> {
        let registry = self.registry();
        if blocking(move || registry.record(digest)).await?.is_some() { Err(Refusal::Known) } else { Ok(()) }
    }

    fn report(&self, inserted: Inserted, digest: Digest, event: Event) -> Result<Digest, Refusal> {
        match inserted {
            Inserted::Known => Err(Refusal::Known),
            Inserted::New | Inserted::Replaced(_) => {
                tracing::info!(record = %digest.short(), "record accepted");
                let _ = self.client.shared.events.send(event); // nobody may be listening
                Ok(digest)
            }
        }
    }

    /// A charter from the registry, else from `from`.
    async fn charter(&self, digest: Digest, from: Option<PeerId>) -> Result<Verified<Charter>, Refusal> {
        if let Some(charter) = self.known_charter(digest).await? {
            return Ok(charter);
        }
        let unknown = |asked| Refusal::UnknownCharter(Error::UnknownCharter { digest, asked });
        let Some(peer) = from else { return Err(unknown(0)) };
        let registry = self.registry();
        if blocking(move || registry.charters()).await?.len() >= self.client.limits().charters {
            return Err(unknown(0));
        }
        let charter = self.fetch_charter(digest, peer).await.map_err(Refusal::UnknownCharter)?;
        charter.ok_or_else(|| unknown(1))
    }

    /// A charter from the registry.
    pub(super) async fn known_charter(&self, digest: Digest) -> Result<Option<Verified<Charter>>, hdd_registry::Error> {
        let registry = self.registry();
        blocking(move || registry.charter(digest)).await
    }

    /// Asks `peer` for a charter, verifies and stores it.
    pub(super) async fn fetch_charter(&self, digest: Digest, peer: PeerId) -> Result<Option<Verified<Charter>>> {
        let bytes = match self.client.ask(peer, SyncRequest::Charter(digest)).await? {
            SyncResponse::Charter(Some(bytes)) => bytes,
            SyncResponse::Charter(None) => return Ok(None),
            SyncResponse::Digests(_) | SyncResponse::Records(_) => {
                return Err(Error::BadAnswer { peer, why: "expected a charter".into() });
            }
        };
        let charter: Verified<Charter> = verify(&bytes)?;
        if charter.digest() != digest {
            return Err(Error::BadAnswer { peer, why: format!("sent charter {} for {digest}", charter.digest()) });
        }
        let (registry, stored) = (self.registry(), charter.clone());
        blocking(move || registry.insert_charter(&stored)).await?;
        Ok(Some(charter))
    }
}

/// What held when it was issued is only a matter of time now.
fn judge(check: impl Fn(u64) -> hdd_protocol::Result<()>, now: u64, issued_at: u64) -> Result<(), Refusal> {
    check(now).map_err(|error| match check(issued_at) {
        Ok(()) => Refusal::Untimely(error),
        Err(_) => Refusal::Invalid(error),
    })
}

fn verify<T: SignedPayload>(bytes: &[u8]) -> Result<Verified<T>, hdd_protocol::Error> {
    Signed::<T>::from_bytes(bytes)?.verify()
}
