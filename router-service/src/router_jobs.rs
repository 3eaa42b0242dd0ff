//! How the device thread comes by its router: trained here, or read from a file that was tested.

use crate::{
    Ensemble, Error, Result, Router, RouterAccuracy, RouterCheck, RouterExamples, RouterParent, RouterProgress,
    RouterTrainer, engine::Worker, router_admission::test_router,
};
use hdd_expert_runtime::{PIXEL_CLAMP, VAE_CLAMP, data, train::Stop};
use hdd_protocol::{Codec, Digest, RouterRecipe, RouterTraining};
use std::path::{Path, PathBuf};

/// A router to be trained.
#[derive(Debug, Clone)]
pub struct RouterPlan {
    /// How; its shape must be the charter's.
    pub recipe: RouterRecipe,
    /// Seed of initialisation, order and noise.
    pub seed: u64,
    /// Weights to begin with.
    pub parent: Option<RouterParent>,
    /// Where an interrupted training is saved and found again.
    pub folder: PathBuf,
    /// Steps between two such savings.
    pub save_every: u64,
    /// Images computed at a time; none is the recipe's batch, or what fits the memory.
    pub micro_batch: Option<u32>,
}

/// A trained router.
#[derive(Debug, Clone)]
pub struct TrainedRouter {
    /// Its file, in the plan's folder.
    pub weights: PathBuf,
    /// What its manifest tells of it.
    pub training: RouterTraining,
    /// The saved run in the plan's folder, of no use once the weights are kept elsewhere.
    pub run: PathBuf,
}

/// A router's file to serve with.
#[derive(Debug, Clone)]
pub struct RouterFile {
    /// The file.
    pub weights: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Shares of the clusters that its author states, if anybody does.
    pub prior: Option<Vec<f32>>,
    /// As [`RouterCheck::margin`]; without one the accuracy is not looked at.
    pub margin: Option<f64>,
}

impl Worker {
    pub(crate) fn train_router(
        &self,
        plan: &RouterPlan,
        mut on_step: impl FnMut(RouterProgress) -> bool,
    ) -> Result<TrainedRouter> {
        let (images, labels) = (&self.images, &self.labels);
        let kept = |name: &str| !data::held_out(name);
        let examples = RouterExamples::of(images, labels, &self.charter, self.device, kept)?;
        let (recipe, parent) = (&plan.recipe, plan.parent.as_ref());
        let mut trainer = RouterTrainer::new(&self.charter, recipe, &examples, plan.seed, parent, self.device)?;
        if trainer.resume(&plan.folder)? {
            tracing::info!(step = trainer.step(), "the router's training goes on");
        }
        if let Some(images) = plan.micro_batch {
            trainer.set_micro_batch(images);
        }
        let stop = trainer.run(&examples, |trainer, progress| {
            if progress.step.is_multiple_of(plan.save_every) {
                trainer.save(&plan.folder)?;
            }
            Ok(on_step(progress))
        })?;
        trainer.save(&plan.folder)?;
        if stop == Stop::Interrupted {
            return Err(Error::Stopped { step: trainer.step() });
        }
        let measured = Some(&self.held_out).filter(|held_out| !held_out.is_empty());
        let accuracy = measured.map(|held_out| trainer.router().accuracy(held_out)).transpose()?;
        let weights = plan.folder.join("router.safetensors");
        trainer.router().save(&weights)?;
        let training = RouterTraining {
            recipe: recipe.clone(),
            steps: trainer.step(),
            images: examples.len() as u64,
            held_out: self.held_out.len() as u64,
            accuracy: accuracy.map(|accuracy| accuracy.per_bin.map(|share| share as f32)),
            prior: examples.prior(self.charter.clusters()),
            seed: plan.seed,
            parent: parent.map(|parent| parent.digest),
        };
        Ok(TrainedRouter { weights, training, run: trainer.file(&plan.folder) })
    }

    /// Tests the file and serves with it from now on.
    pub(crate) fn use_router(&mut self, file: &RouterFile) -> Result<Option<RouterAccuracy>> {
        let router = self.read_router(&file.weights)?;
        let held_out = file.margin.and(Some(&self.held_out));
        let check = RouterCheck { prior: file.prior.as_deref(), held_out, margin: file.margin.unwrap_or_default() };
        let accuracy = test_router(&router, &self.charter, &check)?;
        let members = self.ensemble.take().map_or_else(Vec::new, |ensemble| ensemble.members);
        let paper_clamp = match self.charter.latent.codec {
            Codec::Pixels => PIXEL_CLAMP,
            Codec::StableDiffusionVae { .. } => VAE_CLAMP,
        };
        self.ensemble = Some(Ensemble { router, members, clamp: f64::from(self.charter.latent.clamp), paper_clamp });
        self.router_digest = Some(file.digest);
        Ok(accuracy)
    }

    fn read_router(&self, weights: &Path) -> Result<Router> {
        let mut router = Router::of_charter(&self.charter, 0, self.device);
        router.read(weights).map_err(|error| match error {
            Error::Expert(wrong @ hdd_expert_runtime::Error::Weights { .. }) => Error::Refused(wrong.to_string()),
            error => error,
        })?;
        Ok(router)
    }
}
