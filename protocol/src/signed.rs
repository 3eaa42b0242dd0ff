//! Signed envelopes, after the idea of libp2p's RFC 0002: sign bytes, not structures, and tag the domain.

use crate::{Digest, Error, PublicKey, Result, SecretKey, Signature, codec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, marker::PhantomData, ops::Deref};

/// The wire version that this build writes. It reads every version up to this one; a later one is named as such.
pub const WIRE_VERSION: u16 = 1;

/// A type that travels signed.
pub trait SignedPayload: Serialize + DeserializeOwned {
    /// Separates the signatures of this type from every other's.
    const DOMAIN: &'static str;
    /// The type's name in messages.
    const NAME: &'static str;
    /// The largest envelope, bytes.
    const LIMIT: usize;

    /// The key that must have signed.
    fn author(&self) -> PublicKey;

    /// Checks every bound that needs nothing but the value itself.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] with the field and what it must be.
    fn check(&self) -> Result<()>;
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u16,
    payload: Vec<u8>,
    signer: PublicKey,
    signature: Signature,
}

/// An envelope as received: exact bytes whose signature nobody has checked yet.
pub struct Signed<T> {
    envelope: Envelope,
    payload_type: PhantomData<fn() -> T>,
}

impl<T: SignedPayload> Signed<T> {
    /// Signs `value`.
    ///
    /// # Errors
    /// What [`SignedPayload::check`] refuses; [`Error::WrongSigner`] if `key` is not the value's author.
    pub fn sign(value: T, key: &SecretKey) -> Result<Verified<T>> {
        let payload = codec::encode(&value)?;
        let signature = key.sign(&message(T::DOMAIN, WIRE_VERSION, &payload));
        let envelope = Envelope { version: WIRE_VERSION, payload, signer: key.public(), signature };
        let signed = Self { envelope, payload_type: PhantomData };
        let size = signed.to_bytes()?.len();
        if size > T::LIMIT {
            return Err(Error::TooLarge { what: T::NAME, size, limit: T::LIMIT });
        }
        signed.verify()
    }

    /// Reads an envelope; its content is not looked at.
    ///
    /// # Errors
    /// As [`codec::decode`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Ok(Self { envelope: codec::decode(T::NAME, bytes, T::LIMIT)?, payload_type: PhantomData })
    }

    /// The envelope's bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`] over 16 MiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        codec::encode(&self.envelope)
    }

    /// The record's name: the hash of what was signed. Another signature over the same content has the same name.
    pub fn digest(&self) -> Digest {
        Digest::of(&message(T::DOMAIN, self.envelope.version, &self.envelope.payload))
    }

    /// Checks version, signature, encoding, author and bounds, in this order.
    ///
    /// # Errors
    /// The first of these that fails.
    pub fn verify(self) -> Result<Verified<T>> {
        let Envelope { version, payload, signer, signature } = &self.envelope;
        if !(1..=WIRE_VERSION).contains(version) {
            return Err(Error::UnsupportedVersion { what: T::NAME, found: *version, supported: WIRE_VERSION });
        }
        if !signer.verifies(&message(T::DOMAIN, *version, payload), signature) {
            return Err(Error::BadSignature { what: T::NAME, signer: *signer });
        }
        let value: T = codec::decode(T::NAME, payload, T::LIMIT)?;
        if value.author() != *signer {
            return Err(Error::WrongSigner { what: T::NAME, claimed: value.author(), signer: *signer });
        }
        value.check()?;
        Ok(Verified { digest: self.digest(), bytes: self.to_bytes()?, value })
    }
}

/// What is signed: domain, version, length and payload, so that no two types or versions share a message.
fn message(domain: &str, version: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(domain.len() + payload.len() + 11);
    message.extend_from_slice(domain.as_bytes());
    message.push(0);
    message.extend_from_slice(&version.to_le_bytes());
    message.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    message.extend_from_slice(payload);
    message
}

/// A value whose signature, encoding and bounds have been checked. Only [`Signed`] makes one.
#[derive(Clone)]
pub struct Verified<T> {
    value: T,
    bytes: Vec<u8>,
    digest: Digest,
}

impl<T> Verified<T> {
    /// The record's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The envelope as it travels and is stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Verified<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verified").field(&self.digest).field(&self.value).finish()
    }
}
