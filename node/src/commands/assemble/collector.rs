//! Keeps the ensemble what the network's manifests and the policy say it should be.

use super::{Desk, weights};
use crate::{Error, Result, clock::unix_now, network::Event, node::Node};
use hdd_protocol::{Charter, Digest, Manifest, OfferedExpert, Verified};
use hdd_registry::{Verdict, VerdictState};
use hdd_router_service::{Decision, Engine, Policy, Report};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    oneshot,
};

/// The manifests are looked through this often without news.
const ROUND: Duration = Duration::from_secs(30);
/// News within this are looked at together.
const BURST: Duration = Duration::from_millis(300);
/// A checkpoint that could not be fetched is asked for again after this.
const RETRY: Duration = Duration::from_secs(20);

/// Fetches, tests, admits and withdraws experts.
pub struct Collector<'a> {
    node: &'a Node,
    charter: Verified<Charter>,
    policy: Policy,
    engine: Arc<Engine>,
    desk: Arc<Desk>,
    serving: HashMap<Digest, Verified<Manifest>>,
    failed: HashMap<Digest, Instant>,
    /// Refused by a test while this process runs; a restart looks again, since flags may have changed.
    refused: HashSet<Digest>,
    /// Left out by the policy, and said so.
    declined: HashSet<Digest>,
}

impl<'a> Collector<'a> {
    /// One that serves nothing yet.
    pub fn new(
        node: &'a Node,
        charter: Verified<Charter>,
        policy: Policy,
        engine: Arc<Engine>,
        desk: Arc<Desk>,
    ) -> Self {
        let (serving, failed) = (HashMap::new(), HashMap::new());
        let (refused, declined) = (HashSet::new(), HashSet::new());
        Self { node, charter, policy, engine, desk, serving, failed, refused, declined }
    }

    /// Follows the network until the event channel closes. What it serves it knows of when it is run again.
    ///
    /// # Errors
    /// The registry's; the engine's end.
    pub async fn run(&mut self) -> Result<()> {
        eprintln!("collecting experts of charter {}", self.charter.name);
        let mut events = self.node.client.events();
        if !self.serving.is_empty() {
            self.offer()?;
        }
        loop {
            self.round().await?;
            let pause = if self.failed.is_empty() { ROUND } else { RETRY };
            tokio::select! {
                more = news(&mut events) => match more {
                    true => tokio::time::sleep(BURST).await,
                    false => return Ok(()),
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Withdraws what no longer holds, then admits what is new.
    async fn round(&mut self) -> Result<()> {
        let now = unix_now();
        let registry = self.node.registry.clone();
        let charter = self.charter.digest();
        let current = tokio::task::spawn_blocking(move || registry.manifests(Some(charter))).await??;
        let mut current: Vec<_> = current.into_iter().filter(|m| self.fits(m, now)).collect();
        current.sort_by_key(|m| (m.issued_at, m.digest()));
        self.withdraw(&current).await?;
        let new: Vec<_> = current.into_iter().filter(|m| !self.serving.contains_key(&m.digest())).collect();
        let mut counts = HashMap::new();
        self.serving.values().for_each(|m| *counts.entry(m.spec.cluster).or_default() += 1);
        for manifest in new {
            if self.serving.values().any(|m| m.weights == manifest.weights) {
                self.decline(&manifest, "its weights are served already, under another manifest")?;
                continue;
            }
            match self.policy.decide(&manifest, &counts) {
                Decision::Declined(why) => self.decline(&manifest, &why)?,
                Decision::Wanted => {
                    if self.admit(&manifest).await? {
                        *counts.entry(manifest.spec.cluster).or_default() += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn fits(&self, manifest: &Verified<Manifest>, now: u64) -> bool {
        manifest.check_against(&self.charter, now).is_ok()
    }

    async fn withdraw(&mut self, current: &[Verified<Manifest>]) -> Result<()> {
        let current: HashSet<Digest> = current.iter().map(Verified::digest).collect();
        let gone: Vec<Digest> = self.serving.keys().filter(|digest| !current.contains(digest)).copied().collect();
        for digest in gone {
            let engine = self.engine.clone();
            tokio::task::spawn_blocking(move || engine.remove(digest)).await??;
            if let Some(manifest) = self.serving.remove(&digest) {
                eprintln!("withdrawn: {} (replaced, revoked or expired)", describe(&manifest));
            }
            self.offer()?;
        }
        Ok(())
    }

    fn decline(&mut self, manifest: &Verified<Manifest>, why: &str) -> Result<()> {
        if self.declined.insert(manifest.digest()) {
            eprintln!("left out: {}: {why}", describe(manifest));
            self.record(manifest, VerdictState::Pending, why, None)?;
        }
        Ok(())
    }

    /// Fetches and tests one expert. False if it was refused or could not be fetched now.
    async fn admit(&mut self, manifest: &Verified<Manifest>) -> Result<bool> {
        let digest = manifest.digest();
        if self.refused.contains(&digest) || self.failed.get(&digest).is_some_and(|at| at.elapsed() < RETRY) {
            return Ok(false);
        }
        let Some(file) = weights::fetch(self.node, &describe(manifest), manifest.weights).await else {
            self.failed.insert(digest, Instant::now());
            return Ok(false);
        };
        self.failed.remove(&digest);
        let (reply, verdict) = oneshot::channel();
        let (engine, signed) = (self.engine.clone(), manifest.clone());
        let queue = move || engine.admit(signed, file, Box::new(move |outcome| drop(reply.send(outcome))));
        tokio::task::spawn_blocking(queue).await??;
        match verdict.await.map_err(|_| Error::Training("the device thread ended during a test".into()))? {
            Ok(report) => {
                let measured =
                    report.as_ref().map_or("not measured: too few held-out images of its cluster".into(), |r| {
                        format!("held-out loss {:.4}, {:.2} of its cluster's mean image", r.loss, r.loss / r.floor)
                    });
                eprintln!("admitted: {}: {measured}", describe(manifest));
                self.record(manifest, VerdictState::Admitted, &measured, report)?;
                self.serving.insert(digest, manifest.clone());
                self.offer()?;
                self.node.client.provide_blob(manifest.weights.digest).await.unwrap_or_else(not_announced);
                Ok(true)
            }
            Err(error) => {
                eprintln!("refused: {}: {error}", describe(manifest));
                self.record(manifest, VerdictState::Refused, &error.to_string(), None)?;
                self.refused.insert(digest);
                Ok(false)
            }
        }
    }

    fn record(
        &self,
        manifest: &Verified<Manifest>,
        state: VerdictState,
        reason: &str,
        report: Option<Report>,
    ) -> Result<()> {
        let verdict = Verdict {
            state,
            reason: reason.to_owned(),
            held_out_loss: report.as_ref().map(|r| r.loss as f32),
            baseline_loss: report.as_ref().map(|r| r.floor as f32),
            checked_at: unix_now(),
        };
        Ok(self.node.registry.set_verdict(manifest.digest(), &verdict)?)
    }

    /// Tells the desk what is served, and the network that it is served here.
    fn offer(&self) -> Result<()> {
        let mut experts: Vec<OfferedExpert> = self
            .serving
            .values()
            .map(|m| OfferedExpert { manifest: m.digest(), cluster: m.spec.cluster, objective: m.spec.objective })
            .collect();
        experts.sort_by_key(|e| (e.cluster, e.manifest));
        let covered = experts.iter().map(|e| e.cluster).collect::<HashSet<_>>().len();
        eprintln!("serving {} experts for {covered} of {} clusters", experts.len(), self.charter.clusters());
        self.desk.set_experts(experts, unix_now())?;
        let (client, charter) = (self.node.client.clone(), self.charter.digest());
        tokio::spawn(async move { client.provide_service(charter).await.unwrap_or_else(not_announced) });
        Ok(())
    }
}

/// Says so where it matters little.
pub fn not_announced(error: crate::network::Error) {
    tracing::info!("not in the DHT: {}", Error::from(error).chain());
}

fn describe(manifest: &Verified<Manifest>) -> String {
    let (m, spec) = (manifest, &manifest.spec);
    format!("{} by {} ({} on {}, cluster {})", m.name, m.author.short(), spec.objective, spec.schedule, spec.cluster)
}

/// Waits for records; false if none will come any more.
async fn news(events: &mut Receiver<Event>) -> bool {
    loop {
        match events.recv().await {
            Ok(Event::ManifestArrived(_) | Event::RevocationArrived(_)) | Err(RecvError::Lagged(_)) => return true,
            Ok(_) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}
