//! The one place that names bincode.
//!
//! bincode 2 reads lengths before content, so a nine-byte message can claim a 2^44-byte string: the limit below makes
//! that an error. It also accepts trailing bytes and overlong integers; signatures and digests are over bytes, so one
//! value must have one encoding: what does not encode back to the same bytes is refused.

use crate::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

/// No message of this crate is larger, in bytes.
const LIMIT: usize = 16 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// The canonical encoding of `value`.
///
/// # Errors
/// [`Error::Malformed`] if serde refuses the value or it passes 16 MiB.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    bincode::serde::encode_to_vec(value, config())
        .map_err(|e| Error::Malformed { what: std::any::type_name::<T>(), why: e.to_string() })
}

/// Reads one canonical value of at most `limit` bytes and nothing after it.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::Malformed`] or [`Error::NotCanonical`]; `what` names the type in the message.
pub fn decode<T: Serialize + DeserializeOwned>(what: &'static str, bytes: &[u8], limit: usize) -> Result<T> {
    if bytes.len() > limit.min(LIMIT) {
        return Err(Error::TooLarge { what, size: bytes.len(), limit });
    }
    let (value, used): (T, usize) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|e| Error::Malformed { what, why: e.to_string() })?;
    if used != bytes.len() || encode(&value)? != bytes {
        return Err(Error::NotCanonical { what });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bytes_are_refused() {
        let check = |bytes: &[u8], expected: &str| {
            let error = decode::<String>("text", bytes, 1024).unwrap_err();
            assert!(format!("{error:?}").starts_with(expected), "{bytes:?}: {error:?}");
        };
        check(&[253, 0, 0, 0, 0, 0, 16, 0, 0], "Malformed"); // claims 2^44 bytes
        check(&[1, b'a', 0], "NotCanonical"); // a trailing byte
        check(&[251, 1, 0, b'a'], "NotCanonical"); // the length 1 in three bytes
        check(&[2, b'a'], "Malformed"); // truncated
        check(&[1, 0xff], "Malformed"); // not UTF-8
        check(&[0; 1025], "TooLarge");
        assert_eq!(decode::<String>("text", &[1, b'a'], 1024).unwrap(), "a");
    }
}
