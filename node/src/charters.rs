//! Charters that travel inside the binary, so that a first run needs no download.

use crate::{Error, Result};
use hdd_protocol::{Charter, Signed, Verified};

/// The built-in charter's name on the command line.
pub const BUILT_IN: &str = "emoji32";

const EMOJI32: &[u8] = include_bytes!("../charters/emoji32.charter");

/// The charter of the built-in emoji network.
///
/// # Errors
/// [`Error::BuiltInCharter`] if this build carries none that verifies.
pub fn built_in() -> Result<Verified<Charter>> {
    Signed::from_bytes(EMOJI32)
        .and_then(Signed::verify)
        .map_err(|source| Error::BuiltInCharter { name: BUILT_IN, source })
}
