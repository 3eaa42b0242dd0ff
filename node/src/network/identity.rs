//! One Ed25519 key is both the peer's and the author's identity, so that who connects and who signs can be compared.

use hdd_protocol::{PublicKey, SecretKey};
use libp2p::{
    PeerId,
    identity::{self, Keypair},
};

/// The peer id of `key`; `None` if its bytes are no point of the curve.
pub fn peer_id(key: PublicKey) -> Option<PeerId> {
    let key = identity::ed25519::PublicKey::try_from_bytes(key.as_bytes()).ok()?;
    Some(identity::PublicKey::from(key).to_peer_id())
}

/// The key of `peer`; `None` if it is not of Ed25519. Such a peer id contains the key.
pub fn public_key(peer: PeerId) -> Option<PublicKey> {
    let key = identity::PublicKey::try_decode_protobuf(peer.as_ref().digest()).ok()?;
    let key = PublicKey::from_bytes(key.try_into_ed25519().ok()?.to_bytes());
    (peer_id(key) == Some(peer)).then_some(key)
}

pub(super) fn keypair(key: &SecretKey) -> Result<Keypair, identity::DecodingError> {
    Keypair::ed25519_from_bytes(key.seed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_ids_and_keys_are_the_same_identity() {
        let key = SecretKey::from_seed(&zeroize::Zeroizing::new([7; 32]));
        let peer = keypair(&key).unwrap().public().to_peer_id();
        assert_eq!(peer_id(key.public()), Some(peer));
        assert_eq!(public_key(peer), Some(key.public()));
        assert_eq!(public_key(PeerId::random()), None, "a hashed id contains no key");
    }
}
