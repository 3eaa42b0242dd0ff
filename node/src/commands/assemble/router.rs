//! Where the aggregator's router comes from: trained here and published, or another aggregator's that passed the tests.

use super::{
    args::{Args, RouterChoice},
    publish, weights,
};
use crate::{
    Error, Result, clock::unix_now, network::Event, node::Node, progress::Progress, settings::Settings, table,
};
use hdd_protocol::{Blob, Charter, Digest, RouterManifest, Verified};
use hdd_registry::{Verdict, VerdictState};
use hdd_router_service::{
    Decision, Engine, Error as RouterError, Policy, RouterFile, RouterParent, RouterPlan, RouterProgress,
};
use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

/// Routers of others that are tried, best first by what their authors say: anybody may publish one.
const TRIED: usize = 16;
/// Steps between two savings of a router in training.
const SAVE_EVERY: u64 = 500;
/// Routers that could not be fetched are asked for again after this.
const RETRY: Duration = Duration::from_secs(20);

/// The router in service.
pub struct Appointed {
    /// Its weights.
    pub weights: Digest,
    /// Its manifest, if this node trained it, to be kept published.
    pub own: Option<Verified<RouterManifest>>,
}

/// Finds a router and puts it in the engine's service.
pub struct Search<'a> {
    /// This node.
    pub node: &'a Node,
    /// The network.
    pub charter: &'a Verified<Charter>,
    /// What the user asked for.
    pub args: &'a Args,
    /// The device thread.
    pub engine: &'a Arc<Engine>,
    /// Folders, and the stop that is polled.
    pub settings: &'a Settings,
}

impl Search<'_> {
    /// Does so, as `--router` says.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; a router that was named and is refused, unknown or cannot be fetched; what training met.
    pub async fn run(&self) -> Result<Appointed> {
        let shutdown = &self.settings.shutdown;
        match self.args.router() {
            RouterChoice::Train => self.train().await,
            RouterChoice::Any => shutdown.interrupts(self.any()).await,
            RouterChoice::Digest(id) => shutdown.interrupts(self.named(&id)).await,
            RouterChoice::File(path) => {
                let file = self.import(path).await?;
                let measured = self.put_in_service(file.clone()).await?;
                eprintln!("router: the given file {}: {measured}", file.digest.short());
                Ok(Appointed { weights: file.digest, own: None })
            }
        }
    }

    /// This node's own of an earlier run, or a new one.
    async fn train(&self) -> Result<Appointed> {
        if let Some(own) = self.own()? {
            let served = self.put_in_service(RouterFile { margin: None, ..self.file_of(&own)? }).await;
            match served {
                Ok(_) => {
                    eprintln!("router: the one that was trained here before, {}", own.digest().short());
                    let own = publish::renew(self.node, self.charter, own).await?;
                    return Ok(Appointed { weights: own.weights.digest, own: Some(own) });
                }
                Err(error) => eprintln!("the router that was trained here before is not usable: {}", error.chain()),
            }
        }
        let parent = match &self.args.router_from {
            None => None,
            Some(choice) => Some(self.settings.shutdown.interrupts(self.parent(choice)).await?),
        };
        let plan = RouterPlan {
            recipe: self.args.recipe(self.charter),
            seed: self.args.seed,
            parent,
            folder: self.settings.data.join("routers").join(self.charter.digest().to_string()),
            save_every: SAVE_EVERY,
        };
        let (engine, folder) = (self.engine.clone(), plan.folder.clone());
        let (shutdown, bar) =
            (self.settings.shutdown.clone(), Progress::steps("training the router", plan.recipe.steps));
        let mut first = true;
        let on_step = move |progress: RouterProgress| {
            if std::mem::take(&mut first) && progress.step > 1 {
                eprintln!("the router's training goes on after step {}", progress.step - 1);
            }
            bar.say(format!("cross-entropy {:.3}", progress.loss));
            bar.set(progress.step);
            !shutdown.is_requested()
        };
        let trained = tokio::task::spawn_blocking(move || engine.train_router(plan, on_step)).await?;
        let trained = match trained {
            Err(stopped @ RouterError::Stopped { .. }) if self.settings.shutdown.is_requested() => {
                eprintln!("{stopped}");
                return Err(Error::Interrupted);
            }
            trained => trained?,
        };
        match &trained.training.accuracy {
            Some(bins) => eprintln!(
                "router trained: right for {} of {} held-out images, by noise level from data to noise",
                table::percentages(&bins.map(f64::from)),
                trained.training.held_out
            ),
            None => eprintln!("router trained; no image is held out to measure it with"),
        }
        let own = publish::publish(self.node, self.charter, trained).await?;
        self.put_in_service(RouterFile { margin: None, ..self.file_of(&own)? }).await?;
        std::fs::remove_dir_all(&folder).map_err(Error::io("remove", folder))?; // the registry has it now
        Ok(Appointed { weights: own.weights.digest, own: Some(own) })
    }

    /// What this node published, if its weights are here and were trained as now asked for.
    fn own(&self) -> Result<Option<Verified<RouterManifest>>> {
        let recipe = self.args.recipe(self.charter);
        let is_asked_for = |m: &Verified<RouterManifest>| {
            let t = &m.training;
            m.author == self.node.key.public()
                && t.recipe == recipe
                && t.seed == self.args.seed
                && t.parent.is_some() == self.args.router_from.is_some()
                && self.node.registry.has_blob(m.weights.digest).is_some()
        };
        Ok(self.node.registry.routers(Some(self.charter.digest()))?.into_iter().find(is_asked_for))
    }

    fn file_of(&self, manifest: &RouterManifest) -> Result<RouterFile> {
        let digest = manifest.weights.digest;
        let prior = Some(manifest.training.prior.clone());
        Ok(RouterFile { weights: self.held(digest)?, digest, prior, margin: Some(self.args.router_margin) })
    }

    fn held(&self, blob: Digest) -> Result<PathBuf> {
        let path = self.node.registry.blob_path(blob);
        path.ok_or_else(|| Error::Unknown { id: blob.to_string(), peers: 0 })
    }

    /// The first of the network's that passes; waits for one if there is none.
    async fn any(&self) -> Result<Appointed> {
        self.join().await;
        let mut refused = HashSet::new();
        let mut waiting = false;
        loop {
            let mut events = self.node.client.events();
            for manifest in self.candidates(&refused)? {
                match self.appoint(&manifest).await {
                    Ok(Some(appointed)) => return Ok(appointed),
                    Ok(None) => {} // not fetched: tried again
                    Err(Error::Router(_)) => drop(refused.insert(manifest.digest())),
                    Err(error) => return Err(error),
                }
            }
            if !std::mem::replace(&mut waiting, true) {
                eprintln!("no router of charter {} passes here yet; waiting for one", self.charter.name);
            }
            let _ = tokio::time::timeout(RETRY, async {
                while !matches!(events.recv().await, Ok(Event::RouterArrived(_)) | Err(_)) {}
            })
            .await;
        }
    }

    /// The one with the digest that begins with `id`, or the reason why not.
    async fn named(&self, id: &str) -> Result<Appointed> {
        let manifest = self.find(id).await?;
        let appointed = self.appoint(&manifest).await?;
        appointed
            .ok_or_else(|| Error::Usage(format!("router {id} cannot be fetched now; try again later, or name another")))
    }

    /// Fetches and tests a router, and says what came of it; nothing if it cannot be fetched now.
    async fn appoint(&self, manifest: &Verified<RouterManifest>) -> Result<Option<Appointed>> {
        let name = describe(manifest);
        if weights::fetch(self.node, &name, manifest.weights).await.is_none() {
            return Ok(None);
        }
        let outcome = self.put_in_service(self.file_of(manifest)?).await;
        let (state, reason) = match &outcome {
            Ok(measured) => (VerdictState::Admitted, measured.clone()),
            Err(error) => (VerdictState::Refused, error.to_string()),
        };
        eprintln!("{name}: {reason}");
        let verdict = Verdict { state, reason, held_out_loss: None, baseline_loss: None, checked_at: unix_now() };
        self.node.registry.set_verdict(manifest.digest(), &verdict)?;
        outcome?;
        let own = (manifest.author == self.node.key.public()).then(|| manifest.clone());
        Ok(Some(Appointed { weights: manifest.weights.digest, own }))
    }

    /// Tests it on the device thread. Returns what was measured, in words.
    async fn put_in_service(&self, file: RouterFile) -> Result<String> {
        let engine = self.engine.clone();
        let accuracy = tokio::task::spawn_blocking(move || engine.use_router(file)).await??;
        Ok(accuracy.map_or("in service; its accuracy was not measured, only that it behaves".into(), |accuracy| {
            format!(
                "in service; right for {} of held-out images, from data to noise",
                table::percentages(&accuracy.per_bin)
            )
        }))
    }

    /// Weights to train on.
    async fn parent(&self, choice: &RouterChoice) -> Result<RouterParent> {
        let found = match choice {
            RouterChoice::File(path) => {
                let RouterFile { weights, digest, .. } = self.import(path.clone()).await?;
                return Ok(RouterParent { weights, digest });
            }
            RouterChoice::Digest(id) => vec![self.find(id).await?],
            RouterChoice::Any | RouterChoice::Train => {
                self.join().await;
                self.candidates(&HashSet::new())?
            }
        };
        for manifest in found {
            if let Some(weights) = weights::fetch(self.node, &describe(&manifest), manifest.weights).await {
                eprintln!("the router is trained on from {}", describe(&manifest));
                return Ok(RouterParent { weights, digest: manifest.weights.digest });
            }
        }
        Err(Error::Usage("there is no router to begin with; leave --router-from out, or try again later".into()))
    }

    async fn import(&self, path: PathBuf) -> Result<RouterFile> {
        let registry = self.node.registry.clone();
        let Blob { digest, .. } = tokio::task::spawn_blocking(move || registry.import_file(&path)).await??;
        Ok(RouterFile { weights: self.held(digest)?, digest, prior: None, margin: Some(self.args.router_margin) })
    }

    /// Takes in what peers have. Having none is no failure: others may come.
    async fn join(&self) {
        match self.node.connected().await {
            Ok(_) => self.node.settled().await,
            Err(error) => eprintln!("looking for a router without the network for now: {}", error.chain()),
        }
    }

    async fn find(&self, id: &str) -> Result<Verified<RouterManifest>> {
        let known = |registry: &hdd_registry::Registry| -> Result<Vec<Verified<RouterManifest>>> {
            let mut found = registry.routers(Some(self.charter.digest()))?;
            found.retain(|m| [m.digest(), m.weights.digest].iter().any(|digest| digest.to_string().starts_with(id)));
            Ok(found)
        };
        let mut found = known(&self.node.registry)?;
        if found.is_empty() {
            self.join().await;
            found = known(&self.node.registry)?;
        }
        let peers = self.node.client.peers().await?.len();
        if found.len() > 1 && found.iter().any(|m| m.weights != found[0].weights) {
            return Err(Error::Ambiguous { id: id.into() });
        }
        let manifest = found.into_iter().next().ok_or_else(|| Error::Unknown { id: id.into(), peers })?;
        manifest.check_against(self.charter, unix_now())?;
        Ok(manifest)
    }

    /// Current routers that the policy allows, best first by what their authors say.
    fn candidates(&self, refused: &HashSet<Digest>) -> Result<Vec<Verified<RouterManifest>>> {
        let (now, policy): (_, Policy) = (unix_now(), self.args.policy());
        let mut found = self.node.registry.routers(Some(self.charter.digest()))?;
        found.retain(|m| {
            m.check_against(self.charter, now).is_ok()
                && policy.decide_on_author(m.author) == Decision::Wanted
                && !refused.contains(&m.digest())
        });
        let claim = |m: &RouterManifest| m.low_noise_accuracy().unwrap_or(0.0);
        found.sort_by(|a, b| claim(b).total_cmp(&claim(a)).then(a.digest().cmp(&b.digest())));
        found.truncate(TRIED);
        Ok(found)
    }
}

fn describe(manifest: &Verified<RouterManifest>) -> String {
    format!("router {} by {}", manifest.digest().short(), manifest.author.short())
}
