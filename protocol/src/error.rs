use crate::{Digest, PublicKey};

/// What can be wrong with bytes that claim to be one of this crate's types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are no encoding of the type: truncated, over the limit, or with an unknown variant.
    #[error("cannot decode {what}: {why}")]
    Malformed {
        /// The type that was expected.
        what: &'static str,
        /// The decoder's reason.
        why: String,
    },
    /// The bytes decode, but are not the one encoding of their value (trailing bytes, overlong integers).
    #[error("{what} is not canonically encoded")]
    NotCanonical {
        /// The type that was expected.
        what: &'static str,
    },
    /// The message is larger than its type allows.
    #[error("{what} has {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The type that was expected.
        what: &'static str,
        /// Bytes received.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The envelope's version is one that this build does not speak.
    #[error("{what} has wire version {found}, this build reads up to {supported}; update hdd-node")]
    UnsupportedVersion {
        /// The type that was expected.
        what: &'static str,
        /// The envelope's version.
        found: u16,
        /// The highest version that this build reads.
        supported: u16,
    },
    /// The signature does not match the bytes and the signer's key.
    #[error("{what} has a bad signature: its bytes were altered, or {signer} did not sign them")]
    BadSignature {
        /// The type that was expected.
        what: &'static str,
        /// The key that the envelope names.
        signer: PublicKey,
    },
    /// The payload names another author than the key that signed it.
    #[error("{what} claims to be by {claimed} but is signed by {signer}")]
    WrongSigner {
        /// The type that was expected.
        what: &'static str,
        /// The author that the payload names.
        claimed: PublicKey,
        /// The key that signed.
        signer: PublicKey,
    },
    /// A field is outside its documented range.
    #[error("{what}: {field} {why}")]
    OutOfRange {
        /// The type that was checked.
        what: &'static str,
        /// The offending field.
        field: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The content belongs to another charter.
    #[error("belongs to charter {found}, this is charter {expected}")]
    WrongCharter {
        /// The charter that the content names.
        found: Digest,
        /// The charter that was expected.
        expected: Digest,
    },
    /// Text that is no digest or key.
    #[error("'{text}' is not {what}: expected {expected}")]
    BadText {
        /// What was to be read.
        what: &'static str,
        /// The text.
        text: String,
        /// The form that is accepted.
        expected: &'static str,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Builds [`Error::OutOfRange`] unless `ok`.
pub(crate) fn ensure(ok: bool, what: &'static str, field: &'static str, why: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::OutOfRange { what, field, why: why() }) }
}
