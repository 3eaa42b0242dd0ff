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

/// Steps between two savings of a router in training.
const SAVE_EVERY: u64 = 500;
/// Routers that could not be fetched are asked for again after this.
const RETRY: Duration = Duration::from_secs(20);

/// The router in service.
pub struct Appointed {
    /// Its weights.
    pub weights: Digest,
    /// Its manifest; a file of the user's has none.
    pub manifest: Option<Verified<RouterManifest>>,
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
                // Tested where it lies: nothing is taken in that is not used.
                let file = self.given(path.clone()).await?;
                let refused = |error: Error| Error::Usage(format!("--router {}: {error}", path.display()));
                let measured = self.put_in_service(file.clone()).await.map_err(refused)?;
                self.import(path.clone(), file.digest).await?;
                eprintln!("router: the given file {}: {measured}", path.display());
                Ok(Appointed { weights: file.digest, manifest: None })
            }
        }
    }

    /// This node's own of an earlier run, or a new one.
    async fn train(&self) -> Result<Appointed> {
        if let Some(own) = self.own().await? {
            match self.put_in_service(trusted(self.file_of(&own)?)).await {
                Ok(_) => {
                    eprintln!("router: the one that was trained here before, {}", own.digest().short());
                    let own = publish::renew(self.node, self.charter, own).await?;
                    return Ok(Appointed { weights: own.weights.digest, manifest: Some(own) });
                }
                Err(error @ Error::Router(RouterError::Refused(_))) => {
                    eprintln!("the router that was trained here before is not usable: {}", error.chain());
                }
                Err(error) => return Err(error),
            }
        }
        let parent = match &self.args.router_from {
            None => None,
            Some(choice) => Some(self.settings.shutdown.interrupts(self.parent(choice)).await?),
        };
        let plan = RouterPlan {
            recipe: self.args.recipe(self.charter),
            seed: self.args.seed(),
            parent,
            folder: self.settings.data.join("routers").join(self.charter.digest().to_string()),
            save_every: SAVE_EVERY,
            micro_batch: self.args.router_micro_batch,
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
        // Nobody is told of what does not serve here.
        self.put_in_service(trusted(self.given(trained.weights.clone()).await?)).await?;
        let files = [trained.weights.clone(), trained.run.clone()];
        let own = publish::publish(self.node, self.charter, trained).await?;
        // The registry has the weights now. Runs with other flags that were stopped stay, and the folder with them.
        files.into_iter().try_for_each(|file| std::fs::remove_file(&file).map_err(Error::io("remove", file)))?;
        let _ = std::fs::remove_dir(folder);
        Ok(Appointed { weights: own.weights.digest, manifest: Some(own) })
    }

    /// What this node published, if its weights are here and were trained as now asked for.
    async fn own(&self) -> Result<Option<Verified<RouterManifest>>> {
        let recipe = self.args.recipe(self.charter);
        let known = self.node.registry.routers(Some(self.charter.digest()))?;
        let given = match &self.args.router_from {
            Some(RouterChoice::File(path)) => Some(self.given(path.clone()).await?.digest),
            _ => None,
        };
        let begins_as_asked_for = |parent: Option<Digest>| match (&self.args.router_from, parent) {
            (None, None) | (Some(RouterChoice::Any), Some(_)) => true,
            (Some(RouterChoice::File(_)), Some(_)) => parent == given,
            (Some(RouterChoice::Digest(id)), Some(parent)) => {
                let is_named = |m: &&Verified<RouterManifest>| m.digest().to_string().starts_with(id);
                parent.to_string().starts_with(id) || known.iter().filter(is_named).any(|m| m.weights.digest == parent)
            }
            _ => false,
        };
        let is_asked_for = |m: &Verified<RouterManifest>| {
            let t = &m.training;
            m.author == self.node.key.public()
                && t.recipe == recipe
                && t.seed == self.args.seed()
                && begins_as_asked_for(t.parent)
                && self.node.registry.has_blob(m.weights.digest).is_some()
        };
        Ok(known.iter().find(|m| is_asked_for(m)).cloned())
    }

    fn file_of(&self, manifest: &RouterManifest) -> Result<RouterFile> {
        let digest = manifest.weights.digest;
        let others = manifest.author != self.node.key.public();
        let prior = others.then(|| manifest.training.prior.clone());
        Ok(RouterFile { weights: self.held(digest)?, digest, prior, margin: Some(self.args.router_margin) })
    }

    fn held(&self, blob: Digest) -> Result<PathBuf> {
        let path = self.node.registry.blob_path(blob);
        path.ok_or_else(|| Error::Unknown { id: blob.to_string(), peers: 0 })
    }

    /// The first of the network's that passes; waits for one if there is none.
    async fn any(&self) -> Result<Appointed> {
        self.join().await;
        let (mut refused, mut absent) = (HashSet::new(), HashSet::new());
        let mut waiting = false;
        loop {
            let mut events = self.node.client.events();
            // The best is looked for anew each time: a better one may have arrived. Anybody may publish routers that nobody has,
            // so that what could not be fetched waits until all others were tried.
            let untried =
                |m: &Verified<RouterManifest>| ![&refused, &absent].iter().any(|set| set.contains(&m.digest()));
            if let Some(manifest) = self.candidates()?.into_iter().find(untried) {
                match self.appoint(&manifest).await {
                    Ok(Some(appointed)) => return Ok(appointed),
                    Ok(None) => drop(absent.insert(manifest.digest())),
                    Err(Error::Router(RouterError::Refused(_))) => drop(refused.insert(manifest.digest())),
                    Err(error) => return Err(error),
                }
                continue;
            }
            absent.clear();
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
            Err(Error::Router(error @ RouterError::Refused(_))) => (VerdictState::Refused, error.to_string()),
            Err(_) => return outcome.map(|_| None), // says nothing of the router
        };
        eprintln!("{name}: {reason}");
        let verdict = Verdict { state, reason, held_out_loss: None, baseline_loss: None, checked_at: unix_now() };
        self.node.registry.set_verdict(manifest.digest(), &verdict)?;
        outcome?;
        Ok(Some(Appointed { weights: manifest.weights.digest, manifest: Some(manifest.clone()) }))
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
                let RouterFile { weights, digest, .. } = self.given(path.clone()).await?;
                return Ok(RouterParent { weights, digest });
            }
            RouterChoice::Digest(id) => vec![self.find(id).await?],
            RouterChoice::Any | RouterChoice::Train => {
                self.join().await;
                self.candidates()?
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

    /// A file of the user's, where it lies.
    async fn given(&self, path: PathBuf) -> Result<RouterFile> {
        let file = path.clone();
        let bytes = tokio::task::spawn_blocking(move || std::fs::read(file)).await?;
        let digest = Digest::of(&bytes.map_err(Error::io("read", &path))?);
        Ok(RouterFile { weights: path, digest, prior: None, margin: Some(self.args.router_margin) })
    }

    /// Takes a file that passed in, to be served to others.
    async fn import(&self, path: PathBuf, tested: Digest) -> Result<()> {
        let (registry, file) = (self.node.registry.clone(), path.clone());
        let Blob { digest, .. } = tokio::task::spawn_blocking(move || registry.import_file(&file)).await??;
        if digest == tested {
            return Ok(());
        }
        Err(Error::Usage(format!("--router {} changed while it was tested; run again", path.display())))
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
    fn candidates(&self) -> Result<Vec<Verified<RouterManifest>>> {
        let (now, policy): (_, Policy) = (unix_now(), self.args.policy());
        let mut found = self.node.registry.routers(Some(self.charter.digest()))?;
        found.retain(|m| {
            m.check_against(self.charter, now).is_ok() && policy.decide_on_author(m.author) == Decision::Wanted
        });
        let claim = |m: &RouterManifest| m.low_noise_accuracy().unwrap_or(0.0);
        found.sort_by(|a, b| claim(b).total_cmp(&claim(a)).then(a.digest().cmp(&b.digest())));
        Ok(found)
    }
}

/// A file of this node's own making, which is put to no test but that it behaves.
fn trusted(file: RouterFile) -> RouterFile {
    RouterFile { prior: None, margin: None, ..file }
}

fn describe(manifest: &Verified<RouterManifest>) -> String {
    format!("router {} by {}", manifest.digest().short(), manifest.author.short())
}
