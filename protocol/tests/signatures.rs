//! Signed records under attack: whatever is altered, moved to another type or signed by somebody else is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixtures;

use ed25519_dalek::{Signer as _, SigningKey};
use fixtures::{ISSUED, LIFE, charter, key, router};
use hdd_protocol::{
    Blob, Charter, Digest, Error, ExpertSpec, Manifest, Objective, Offer, OfferedExpert, PublicKey, Result, Revocation,
    RevocationTarget, RouterManifest, SampleLimits, Schedule, Signed, SignedPayload, TimestepMap, Training, Verified,
    WIRE_VERSION, decode, encode,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

fn manifest(charter: &Verified<Charter>) -> Manifest {
    let (architecture, recipe) = (charter.architecture.clone(), charter.recipe.clone());
    Manifest {
        charter: charter.digest(),
        author: key(2).public(),
        name: "cats".into(),
        sequence: 1,
        issued_at: ISSUED,
        expires_at: ISSUED + LIFE,
        spec: ExpertSpec {
            architecture,
            objective: Objective::Velocity,
            schedule: Schedule::Linear,
            cluster: 1,
            timestep_map: TimestepMap::Paper,
            preconditioning: None,
        },
        weights: Blob { digest: Digest::of(b"weights"), size: 1_000 },
        training: Training { steps: 1, images: 1, loss: 0.5, seed: 0, recipe, parent: None },
        licence: "CC0-1.0".into(),
        next_key: None,
    }
}

fn revocation() -> Revocation {
    Revocation {
        charter: Digest::of(b"charter"),
        author: key(2).public(),
        target: RevocationTarget::Expert("cats".into()),
        reason: "trained on the wrong pictures".into(),
        issued_at: ISSUED,
    }
}

fn offer() -> Offer {
    let expert = OfferedExpert { manifest: Digest::of(b"manifest"), cluster: 1, objective: Objective::Epsilon };
    Offer {
        aggregator: key(3).public(),
        charter: Digest::of(b"charter"),
        experts: vec![expert; 3],
        router: None,
        limits: SampleLimits::default(),
        issued_at: ISSUED,
    }
}

struct Records {
    charter: Verified<Charter>,
    manifest: Verified<Manifest>,
    router: Verified<RouterManifest>,
    revocation: Verified<Revocation>,
    offer: Verified<Offer>,
}

fn records() -> Records {
    let charter = Signed::sign(charter(), &key(1)).unwrap();
    let manifest = Signed::sign(manifest(&charter), &key(2)).unwrap();
    let router = Signed::sign(router(&charter), &key(3)).unwrap();
    let revocation = Signed::sign(revocation(), &key(2)).unwrap();
    Records { charter, manifest, router, revocation, offer: Signed::sign(offer(), &key(3)).unwrap() }
}

fn open<T: SignedPayload>(bytes: &[u8]) -> Result<Verified<T>> {
    Signed::from_bytes(bytes)?.verify()
}

/// An envelope as anybody can build it.
#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u16,
    payload: Vec<u8>,
    signer: PublicKey,
    signature: ([u8; 32], [u8; 32]),
}

/// `payload` as `key(signer)` signs it for a domain and version of its choice.
fn forge(domain: &str, version: u16, payload: Vec<u8>, signer: u8) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let message = [domain.as_bytes(), &[0], &version.to_le_bytes(), &length, &payload].concat();
    let signature = SigningKey::from_bytes(&[signer; 32]).sign(&message).to_bytes();
    let halves = [&signature[..32], &signature[32..]].map(|half| half.try_into().unwrap());
    encode(&Envelope { version, payload, signer: key(signer).public(), signature: halves.into() }).unwrap()
}

fn comes_back<T: SignedPayload + PartialEq + Debug>(record: &Verified<T>) {
    let again = open::<T>(record.bytes()).unwrap();
    assert_eq!(*again, **record);
    assert_eq!((again.bytes(), again.digest()), (record.bytes(), record.digest()));
    // What `forge` builds is what the crate builds, so that its forgeries fail for the reason that they are meant to.
    let signer = (1..4).find(|n| key(*n).public() == record.author()).unwrap();
    assert_eq!(forge(T::DOMAIN, WIRE_VERSION, encode(&**record).unwrap(), signer), record.bytes());
}

#[test]
fn what_is_signed_verifies_and_comes_back() {
    let r = records();
    comes_back(&r.charter);
    comes_back(&r.manifest);
    comes_back(&r.router);
    comes_back(&r.revocation);
    comes_back(&r.offer);
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

#[test]
fn every_flipped_bit_of_a_manifest_is_refused() {
    let m = records().manifest;
    for bit in 0..8 * m.bytes().len() {
        assert!(open::<Manifest>(&flipped(m.bytes(), bit)).is_err(), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn a_flipped_bit_of_any_record_is_refused(at in any::<prop::sample::Index>()) {
        let r = records();
        let flip = |bytes: &[u8]| flipped(bytes, at.index(8 * bytes.len()));
        prop_assert!(open::<Charter>(&flip(r.charter.bytes())).is_err());
        prop_assert!(open::<RouterManifest>(&flip(r.router.bytes())).is_err());
        prop_assert!(open::<Revocation>(&flip(r.revocation.bytes())).is_err());
        prop_assert!(open::<Offer>(&flip(r.offer.bytes())).is_err());
    }

    #[test]
    fn what_a_manifest_says_survives_the_wire(sequence: u64, seed: u64, loss in -1e6f32..1e6, name in "[a-zA-Z0-9_-]{1,64}") {
        let r = records();
        let mut m = (*r.manifest).clone();
        (m.sequence, m.training.seed, m.training.loss, m.name) = (sequence, seed, loss, name);
        let signed = Signed::sign(m.clone(), &key(2)).unwrap();
        prop_assert_eq!(&*open::<Manifest>(signed.bytes()).unwrap(), &m);
    }

    #[test]
    fn noise_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        prop_assert!(open::<Manifest>(&bytes).is_err());
        prop_assert!(open::<Charter>(&bytes).is_err());
        prop_assert!(open::<RouterManifest>(&bytes).is_err());
    }
}

#[test]
fn a_signature_for_one_type_is_none_for_another() {
    fn refused<T: SignedPayload>(bytes: &[u8]) {
        let error = open::<T>(bytes).err().unwrap();
        assert!(matches!(&error, Error::BadSignature { what, .. } if *what == T::NAME), "{error:?}");
    }
    let r = records();
    for bytes in [r.manifest.bytes(), r.router.bytes(), r.offer.bytes(), r.revocation.bytes()] {
        refused::<Charter>(bytes);
    }
    for bytes in [r.charter.bytes(), r.manifest.bytes(), r.offer.bytes(), r.revocation.bytes()] {
        refused::<RouterManifest>(bytes);
    }
    for bytes in [r.charter.bytes(), r.router.bytes(), r.offer.bytes(), r.revocation.bytes()] {
        refused::<Manifest>(bytes);
    }
    for bytes in [r.charter.bytes(), r.manifest.bytes(), r.router.bytes(), r.offer.bytes()] {
        refused::<Revocation>(bytes);
    }
    for bytes in [r.charter.bytes(), r.manifest.bytes(), r.router.bytes(), r.revocation.bytes()] {
        refused::<Offer>(bytes);
    }
    // The very bytes of a manifest, signed by its author for another purpose.
    for domain in [Charter::DOMAIN, Revocation::DOMAIN, Offer::DOMAIN, "hdd", ""] {
        refused::<Manifest>(&forge(domain, WIRE_VERSION, encode(&*r.manifest).unwrap(), 2));
    }
    refused::<RouterManifest>(&forge(Manifest::DOMAIN, WIRE_VERSION, encode(&*r.router).unwrap(), 3));
}

#[test]
fn nobody_signs_for_another() {
    let m = (*records().manifest).clone();
    let error = Signed::sign(m.clone(), &key(9)).unwrap_err();
    assert!(matches!(error, Error::WrongSigner { .. }), "{error:?}");
    let error = open::<Manifest>(&forge(Manifest::DOMAIN, WIRE_VERSION, encode(&m).unwrap(), 9)).unwrap_err();
    let expected = Error::WrongSigner { what: "manifest", claimed: key(2).public(), signer: key(9).public() };
    assert_eq!(error, expected);
    // Nor by writing the author's key beside the own signature.
    let mut envelope: Envelope =
        decode("envelope", &forge(Manifest::DOMAIN, 1, encode(&m).unwrap(), 9), 1 << 20).unwrap();
    envelope.signer = key(2).public();
    let error = open::<Manifest>(&encode(&envelope).unwrap()).unwrap_err();
    assert!(matches!(error, Error::BadSignature { .. }), "{error:?}");
}

#[test]
fn another_version_is_named_before_anything_else_is_looked_at() {
    for version in [0, WIRE_VERSION + 1, u16::MAX] {
        let error = open::<Manifest>(&forge(Manifest::DOMAIN, version, b"of the future".to_vec(), 2)).unwrap_err();
        let expected = Error::UnsupportedVersion { what: "manifest", found: version, supported: WIRE_VERSION };
        assert_eq!(error, expected);
    }
}

#[test]
fn envelopes_of_the_wrong_length_are_refused() {
    let m = records().manifest;
    for end in 0..m.bytes().len() {
        assert!(matches!(open::<Manifest>(&m.bytes()[..end]), Err(Error::Malformed { .. })), "{end}");
    }
    let trailing = [m.bytes(), &[0]].concat();
    assert_eq!(open::<Manifest>(&trailing).unwrap_err(), Error::NotCanonical { what: "manifest" });
    // Inside the payload too, though its signature is right.
    let payload = [&encode(&*m).unwrap()[..], &[0]].concat();
    let error = open::<Manifest>(&forge(Manifest::DOMAIN, WIRE_VERSION, payload, 2)).unwrap_err();
    assert_eq!(error, Error::NotCanonical { what: "manifest" });
    let oversized = forge(Manifest::DOMAIN, WIRE_VERSION, vec![0; Manifest::LIMIT], 2);
    let error = open::<Manifest>(&oversized).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "manifest", limit: Manifest::LIMIT, .. }), "{error:?}");
    let long = Charter { data_terms: "x".repeat(Charter::LIMIT), ..charter() };
    assert!(matches!(Signed::sign(long, &key(1)), Err(Error::TooLarge { .. })));
}

#[test]
fn a_charter_excludes_what_does_not_fit_it() {
    let Records { charter, manifest, .. } = records();
    manifest.check_against(&charter, ISSUED).unwrap();
    manifest.check_against(&charter, ISSUED + LIFE - 1).unwrap();
    let other = Signed::sign(Charter { name: "other".into(), ..(*charter).clone() }, &key(1)).unwrap();
    let error = manifest.check_against(&other, ISSUED).unwrap_err();
    assert_eq!(error, Error::WrongCharter { found: charter.digest(), expected: other.digest() });

    type Change = fn(&mut Manifest);
    let table: [(&str, u64, Change); 9] = [
        ("cluster", ISSUED, |m| m.spec.cluster = 2),
        ("architecture", ISSUED, |m| m.spec.architecture.channels = 4),
        ("architecture", ISSUED, |m| m.spec.architecture.depth = 2),
        ("weights", ISSUED, |m| m.weights.size = 1_001),
        ("licence", ISSUED, |m| m.licence = "proprietary".into()),
        ("expires_at", ISSUED, |m| m.expires_at += 1),
        ("expires_at", ISSUED + LIFE, |_| {}),
        ("issued_at", ISSUED - 601, |_| {}),
        ("expires_at", u64::MAX, |_| {}),
    ];
    for (expected, now, change) in table {
        let mut changed = (*manifest).clone();
        change(&mut changed);
        let signed = Signed::sign(changed, &key(2)).unwrap();
        let error = signed.check_against(&charter, now).unwrap_err();
        assert!(matches!(&error, Error::OutOfRange { field, .. } if *field == expected), "{expected}: {error:?}");
    }
}
