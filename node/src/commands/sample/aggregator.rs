use crate::{Error, Result, network::Client, progress::Progress};
use hdd_protocol::{Charter, Offer, Verified};
use libp2p::PeerId;
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

/// The network is asked again after this: an aggregator may only just have started.
const AGAIN: Duration = Duration::from_secs(2);
/// An aggregator answers within this or counts as silent.
const ANSWER: Duration = Duration::from_secs(10);
/// Of more aggregators than this no offers are asked for in one round.
const ASKED: usize = 32;

/// An aggregator and what it serves.
pub struct Aggregator {
    /// Whom to ask.
    pub peer: PeerId,
    /// What it serves; at least one expert.
    pub offer: Verified<Offer>,
}

impl Aggregator {
    fn clusters(&self) -> usize {
        self.offer.experts.iter().map(|expert| expert.cluster).collect::<HashSet<_>>().len()
    }
}

/// Aggregators of `charter` with experts, those that cover most clusters first; `only` leaves no choice. Looks again until
/// one is found or `patience` ends.
///
/// # Errors
/// [`Error::NoAggregator`] with what was heard and what to do.
pub async fn find(
    client: &Client,
    charter: &Verified<Charter>,
    only: Option<PeerId>,
    patience: Duration,
) -> Result<Vec<Aggregator>> {
    let start = Instant::now();
    let waiting = Progress::waiting(format!("looking for an aggregator of {}:", charter.name));
    loop {
        let (mut found, heard) = look(client, charter, only).await;
        if !found.is_empty() {
            found.sort_by_key(|aggregator| std::cmp::Reverse(aggregator.clusters()));
            let best = &found[0];
            waiting.finish(&format!(
                "{} with {} experts for {} of {} clusters",
                best.peer,
                best.offer.experts.len(),
                best.clusters(),
                charter.clusters()
            ));
            return Ok(found);
        }
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(no_aggregator(charter, start.elapsed(), heard));
        }
        waiting.say(heard);
        tokio::time::sleep(AGAIN.min(left)).await;
    }
}

fn no_aggregator(charter: &Verified<Charter>, waited: Duration, heard: String) -> Error {
    let remedy = if heard == NOBODY {
        "start one with `hdd-node assemble`, wait longer with --wait, or join through another --bootstrap"
    } else {
        "wait until it is ready with --wait, or join through another --bootstrap"
    };
    Error::NoAggregator { charter: charter.digest(), waited, heard, remedy }
}

const NOBODY: &str = "none has announced itself";

/// One round: the aggregators that can serve, and a word on those that cannot.
async fn look(client: &Client, charter: &Verified<Charter>, only: Option<PeerId>) -> (Vec<Aggregator>, String) {
    let peers = match only {
        Some(peer) => vec![peer],
        None => match client.aggregators(charter.digest()).await {
            Ok(peers) => peers,
            Err(error) => return (Vec::new(), Error::from(error).chain()),
        },
    };
    let mut heard = String::from(NOBODY);
    let offers = peers.into_iter().take(ASKED).map(|peer| async move {
        match tokio::time::timeout(ANSWER, client.offer(peer)).await {
            Ok(Ok(offer)) if offer.charter != charter.digest() => Err(format!("{peer} serves another charter")),
            Ok(Ok(offer)) if offer.experts.is_empty() => Err(format!("{peer} has no expert yet")),
            Ok(Ok(offer)) => Ok(Aggregator { peer, offer }),
            Ok(Err(error)) => Err(format!("{peer}: {}", Error::from(error).chain())),
            Err(_) => Err(format!("{peer} does not answer")),
        }
    });
    let mut found = Vec::new();
    for answer in futures::future::join_all(offers).await {
        match answer {
            Ok(aggregator) => found.push(aggregator),
            Err(why) => heard = why,
        }
    }
    (found, heard)
}
