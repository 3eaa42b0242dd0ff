//! Writes the built-in charter: `emoji_charter PATH UNIX_SECONDS [SEED]`.
//!
//! `SEED` is the founder's secret in hex; without it one is drawn and forgotten, so that nobody can issue a successor in
//! the founder's name.

use hdd_expert_runtime::data::{assign, emoji_charter, emoji32, features};
use hdd_protocol::{Digest, SecretKey, Signed};
use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (path, issued_at, seed) = match &arguments[..] {
        [path, issued_at] => (path, issued_at, rand::random()),
        [path, issued_at, seed] => (path, issued_at, *seed.parse::<Digest>()?.as_bytes()),
        _ => return Err("usage: emoji_charter PATH UNIX_SECONDS [SEED]".into()),
    };
    let key = SecretKey::from_seed(&seed.into());
    let charter = Signed::sign(emoji_charter(key.public(), issued_at.parse()?)?, &key)?;
    fs::write(path, charter.bytes())?;

    let images = emoji32()?;
    let assignments = assign(&features(&charter.extractor, &images)?, &charter.centroids);
    println!("{path}: charter {}, {} bytes", charter.digest(), charter.bytes().len());
    for k in 0..charter.clusters() {
        println!("cluster {k}: {} images", assignments.iter().filter(|&&a| a == k).count());
    }
    Ok(())
}
