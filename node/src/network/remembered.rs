//! Peers that are remembered between runs, so that a node finds the network again when every bootstrap is gone.

use hdd_registry::write_atomically;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fs, io, path::Path};

/// Peers kept, the latest first.
const PEERS: usize = 64;

#[derive(Serialize, Deserialize)]
struct Entry {
    peer: String,
    addresses: Vec<String>,
}

/// The latest peers and where they listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    peers: VecDeque<(PeerId, Vec<Multiaddr>)>,
}

impl Remembered {
    /// Reads the file; what cannot be read is left out, with a warning.
    pub(super) fn load(path: &Path) -> Self {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            text => text,
        };
        let entries = text.and_then(|text| Ok(serde_json::from_slice::<Vec<Entry>>(&text)?));
        let entries = entries.unwrap_or_else(|error| {
            tracing::warn!(file = %path.display(), %error, "remembered peers cannot be read; starting without");
            Vec::new()
        });
        let parse = |entry: Entry| {
            let addresses = entry.addresses.iter().filter_map(|a| a.parse().ok()).collect();
            Some((entry.peer.parse().ok()?, addresses))
        };
        Self { peers: entries.into_iter().filter_map(parse).take(PEERS).collect() }
    }

    /// Writes the file; blocks.
    pub(super) fn save(&self, path: &Path) {
        let entry = |(peer, addresses): &(PeerId, Vec<Multiaddr>)| Entry {
            peer: peer.to_string(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let entries: Vec<_> = self.peers.iter().map(entry).collect();
        let saved = serde_json::to_vec_pretty(&entries).map_err(|error| error.to_string());
        let saved = saved.and_then(|text| write_atomically(path, &text).map_err(|error| error.to_string()));
        if let Err(error) = saved {
            tracing::warn!(file = %path.display(), error, "cannot remember peers");
        }
    }

    /// Puts a peer first. Returns whether anything changed.
    pub(super) fn insert(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) -> bool {
        if addresses.is_empty() || self.peers.front().is_some_and(|(p, a)| *p == peer && *a == addresses) {
            return false;
        }
        self.peers.retain(|(known, _)| *known != peer);
        self.peers.push_front((peer, addresses));
        self.peers.truncate(PEERS);
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(PeerId, Vec<Multiaddr>)> {
        self.peers.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_peers_survive_a_restart_and_a_broken_file_does_not_stop_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        assert_eq!(Remembered::load(&path), Remembered::default());
        let mut peers = Remembered::default();
        let ids: Vec<_> = (0..PEERS + 1).map(|_| PeerId::random()).collect();
        let address: Multiaddr = "/ip4/192.0.2.1/tcp/4001".parse().unwrap();
        for id in &ids {
            assert!(peers.insert(*id, vec![address.clone()]));
        }
        assert!(!peers.insert(ids[PEERS], vec![address.clone()]), "nothing new");
        peers.save(&path);
        let loaded = Remembered::load(&path);
        assert_eq!(loaded, peers);
        assert_eq!(loaded.iter().count(), PEERS, "the oldest is forgotten");
        assert_eq!(loaded.iter().next(), Some(&(ids[PEERS], vec![address])));
        std::fs::write(&path, "[{").unwrap();
        assert_eq!(Remembered::load(&path), Remembered::default());
    }
}
