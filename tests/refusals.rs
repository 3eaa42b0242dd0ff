//! Bad input: a clear error that says what to do, a non-zero exit, nothing half-written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_tests::{Node, binary, run};
use std::path::Path;

/// Runs a command that must fail, and checks that its error holds all `words`.
fn refused(data: &Path, args: &[&str], words: &[&str]) {
    let output = run(data, args).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?}\n{text}", output.status);
    for word in words {
        assert!(text.contains(word), "{args:?} does not say '{word}':\n{text}");
    }
}

#[test]
fn requests_and_data_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("node");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("a.png"), b"not a picture").unwrap();
    let (empty, broken) = (empty.to_str().unwrap(), broken.to_str().unwrap());
    let out = folder.path().join("out.png");
    let out = out.to_str().unwrap();
    let long = "x".repeat(5000);

    refused(&data, &["sample", "--prompt", &long, "--out", out], &["prompt", "shorten"]);
    refused(&data, &["sample", "--prompt", "a", "--count", "1000000000", "--out", out], &["count"]);
    refused(&data, &["sample", "--prompt", "a", "--steps", "1000000", "--out", out], &["steps"]);
    refused(&data, &["sample", "--prompt", "a", "--out", "/no/such/folder/out.png"], &["/no/such/folder"]);
    refused(&data, &["sample", "--prompt", "a", "--out", out], &["--bootstrap"]);
    refused(&data, &["contribute", "--no-publish", "--cluster", "9"], &["no cluster 9"]);
    refused(&data, &["contribute", "--no-publish", "--images", empty], &[empty]);
    refused(&data, &["contribute", "--no-publish", "--images", broken], &[broken]);
    refused(&data, &["contribute", "--no-publish", "--images", "/no/such/folder"], &["/no/such/folder"]);
    refused(&data, &["contribute", "--no-publish", "--width", "33"], &["width"]);
    refused(&data, &["contribute", "--no-publish", "--learning-rate", "nan"], &["learning_rate"]);
    refused(&data, &["contribute", "--name", "../up"], &["name"]);
    refused(&data, &["contribute", "--architecture", "DiT-B/2"], &["50000000"]);
    refused(&data, &["contribute", "--licence", "MIT"], &["CC-BY-4.0"]);
    refused(&data, &["assemble", "--max-loss=-1"], &["--max-loss"]);
    refused(&data, &["assemble", "--allow", "nobody"], &["64 hexadecimal digits"]);
    refused(&data, &["contribute", "--listen", "/ip4/127.0.0.1/tcp/0", "--charter", &"0".repeat(64)], &["charter"]);
    assert!(!Path::new(out).exists());
}

#[test]
fn networks_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.png");
    let out = out.to_str().unwrap();
    // A port that nobody listens on, and one that somebody has.
    let dead = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
    let sample = ["sample", "--prompt", "a", "--wait", "1", "--out", out, "--bootstrap", dead];
    refused(&folder.path().join("client"), &sample, &["/ip4/127.0.0.1/tcp/9"]);

    let mut relay = Node::start(&binary(), &folder.path().join("relay"), &["relay"]).unwrap();
    let address = relay.address().unwrap();
    let listen = address.split("/p2p/").next().unwrap();
    refused(&folder.path().join("second"), &["relay", "--listen", listen], &[listen, "listen on another"]);

    // A network without an aggregator; the relay is not disturbed by any of it.
    let sample = ["sample", "--prompt", "a", "--wait", "2", "--out", out, "--bootstrap", &address];
    refused(&folder.path().join("client"), &sample, &["no aggregator", "assemble"]);
    assert!(!Path::new(out).exists());
    assert_eq!(relay.stop().unwrap(), 0);
}

#[test]
fn a_key_that_others_could_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["key", "show"]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let key = folder.path().join("key.ed25519");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(folder.path(), &["key", "show"], &["chmod 600"]);
}
