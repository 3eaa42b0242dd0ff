//! Training of the router (paper Section 6.3): cross-entropy to the clusters' labels on the linear path.
//!
//! Every random draw of a step comes from the run's seed and the step's number, as in an expert's training, so that a run
//! that was stopped goes on as if it had not been.

use crate::{Error, Result, Router};
use hdd_expert_runtime::{
    Adam, AdamState, column,
    data::{self, Images},
    normal,
    train::{Compute, Stop, draw_times, with_fitting_batch},
    weights::{self, Named},
};
use hdd_protocol::{Charter, Digest, RouterRecipe, TimeSampling, Verified, encode};
use rand::{Rng, SeedableRng, seq::index};
use rand_chacha::ChaCha12Rng;
use std::{
    collections::HashMap,
    f64::consts::PI,
    fs,
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};

/// Share of the images that are trained on without their text, so that the router also serves requests without a prompt.
const TEXT_DROPOUT: f64 = 0.1;
/// The step size ends at this share of the first (Section 6.3: 5e-5 to 5e-7).
const LAST_RATE: f64 = 0.01;
/// Images that are hashed together.
const HASHED: i64 = 256;

/// Labelled latents.
pub struct RouterExamples {
    /// `(N, C, H, W)`
    pub latents: Tensor,
    /// `(N, L, W)`
    pub text: Tensor,
    /// Cluster of each image, `(N)` int64.
    pub labels: Tensor,
}

impl RouterExamples {
    /// Those of `images` whose name `is_wanted`; `labels` has one cluster an image.
    ///
    /// # Errors
    /// A text encoder that this build lacks; what libtorch refuses.
    pub fn of(
        images: &Images,
        labels: &[u16],
        charter: &Charter,
        device: Device,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let rows: Vec<usize> = (0..images.len()).filter(|&i| is_wanted(&images.names[i])).collect();
        let labels: Vec<i64> = rows.iter().map(|&i| i64::from(labels[i])).collect();
        let images = images.select(&rows);
        Ok(Self {
            latents: images.tensor(device)?,
            text: data::encode(&charter.text, &images.captions, device)?,
            labels: Tensor::from_slice(&labels).to_device(device),
        })
    }

    /// Number of images, N.
    pub fn len(&self) -> usize {
        self.labels.size().first().map_or(0, |&n| n as usize)
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Share of the images in each of `clusters` clusters.
    pub fn prior(&self, clusters: u16) -> Vec<f32> {
        let count = |k| self.labels.eq(i64::from(k)).sum(Kind::Int64).int64_value(&[]);
        (0..clusters).map(|k| count(k) as f32 / self.len() as f32).collect()
    }

    /// Names the images with their texts and clusters, wherever they lie.
    fn digest(&self) -> Result<Digest> {
        let mut parts = Vec::new();
        for tensor in [&self.latents, &self.text, &self.labels] {
            for first in (0..self.len() as i64).step_by(HASHED as usize) {
                let rows = tensor.narrow(0, first, HASHED.min(self.len() as i64 - first));
                let rows = rows.f_to_device(Device::Cpu)?.f_contiguous()?;
                let mut bytes = vec![0; rows.numel() * rows.kind().elt_size_in_bytes()];
                rows.f_copy_data_u8(&mut bytes, rows.numel())?;
                parts.push(Digest::of(&bytes));
            }
        }
        Ok(Digest::of(&encode(&parts)?))
    }

    pub(crate) fn select(&self, indices: &[i64]) -> Self {
        let indices = Tensor::from_slice(indices).to_device(self.latents.device());
        let rows = |t: &Tensor| t.index_select(0, &indices);
        Self { latents: rows(&self.latents), text: rows(&self.text), labels: rows(&self.labels) }
    }

    /// Linear-path points of all examples at `t`, `(N, C, H, W)`.
    pub(crate) fn noised(&self, t: &[f64], noise: &Tensor) -> Tensor {
        let column = |f: fn(f64) -> f64| column(t.iter().map(|&t| f(t)), &self.latents);
        column(|t| 1.0 - t) * &self.latents + column(|t| t) * noise
    }
}

/// Weights to train on.
#[derive(Debug, Clone)]
pub struct RouterParent {
    /// The file.
    pub weights: PathBuf,
    /// Its digest.
    pub digest: Digest,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterProgress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub of: u64,
    /// Cross-entropy of the step's batch.
    pub loss: f64,
}

/// A router in training.
pub struct RouterTrainer {
    router: Router,
    params: Vec<Tensor>,
    state: AdamState,
    recipe: RouterRecipe,
    seed: u64,
    step: u64,
    /// Images computed at a time.
    micro_batch: u32,
    /// Names what the weights are a function of.
    run: Digest,
}

impl RouterTrainer {
    /// A run on `examples` of the charter's clusters from fresh weights, or from those of `parent`.
    ///
    /// # Errors
    /// [`Error::Router`] without images, or for a recipe of another shape than the charter's; a parent's file that does not
    /// fit.
    pub fn new(
        charter: &Verified<Charter>,
        recipe: &RouterRecipe,
        examples: &RouterExamples,
        seed: u64,
        parent: Option<&RouterParent>,
        device: Device,
    ) -> Result<Self> {
        recipe.check()?;
        if examples.is_empty() {
            return Err(Error::Router("there is no image to train on".into()));
        }
        if !recipe.has_shape_of(&charter.router) {
            return Err(Error::Router("its recipe has another shape than the charter's".into()));
        }
        let router = Router::of_charter(charter, seed, device);
        if let Some(parent) = parent {
            weights::read_into(&parent.weights, &router.parameters())?;
        }
        let parent = parent.map(|parent| parent.digest);
        let run = Digest::of(&encode(&(charter.digest(), recipe, seed, parent, examples.digest()?))?);
        let params: Vec<Tensor> = router.parameters().into_values().collect();
        let state = AdamState::new(&params);
        Ok(Self { router, params, state, recipe: recipe.clone(), seed, step: 0, micro_batch: recipe.batch, run })
    }

    /// Computes this many images at a time; a batch is the recipe's whatever it is, and its gradients the same to rounding.
    pub fn set_micro_batch(&mut self, images: u32) {
        self.micro_batch = images.clamp(1, self.recipe.batch);
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The router as it stands.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Goes on where [`RouterTrainer::save`] left a run of the same charter, recipe, seed, parent and images in `folder`.
    /// Returns whether there was one.
    ///
    /// # Errors
    /// [`Error::Router`] for a damaged file.
    pub fn resume(&mut self, folder: &Path) -> Result<bool> {
        let file = self.file(folder);
        if !file.exists() {
            return Ok(false);
        }
        let state = self.training_state();
        weights::read_into(&file, &state).map_err(|e| Error::Router(format!("{e}; remove it to begin anew")))?;
        self.step = state.get(STEP).map_or(0, |step| step.int64_value(&[]).max(0) as u64);
        Ok(true)
    }

    /// Saves the run in `folder`: all that it needs to go on, whole or not at all.
    ///
    /// # Errors
    /// As [`weights::write`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        let failed = |source| hdd_expert_runtime::Error::Io { action: "create", path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        Ok(weights::write(&self.file(folder), &self.training_state(), HashMap::new())?)
    }

    /// Trains until the recipe's steps are done or `on_step` says stop. `on_step` sees the trainer between steps, and may
    /// save. Where the device's memory ends, the rest of the run computes fewer images at a time.
    ///
    /// # Errors
    /// [`Error::Router`] if the loss or its gradient is no number or one image is too many for the memory, with what was
    /// saved untouched; what `on_step` returns.
    pub fn run(
        &mut self,
        examples: &RouterExamples,
        mut on_step: impl FnMut(&Self, RouterProgress) -> Result<bool>,
    ) -> Result<Stop> {
        while self.step < self.recipe.steps {
            let loss = self.advance(examples)?;
            let progress = RouterProgress { step: self.step, of: self.recipe.steps, loss };
            if !on_step(self, progress)? && self.step < self.recipe.steps {
                return Ok(Stop::Interrupted);
            }
        }
        Ok(Stop::Finished)
    }

    fn advance(&mut self, examples: &RouterExamples) -> Result<f64> {
        let mut rng = ChaCha12Rng::seed_from_u64(self.seed);
        rng.set_stream(self.step);
        let noise = rng.random();
        let batch = (self.recipe.batch as usize).min(examples.len());
        let indices: Vec<i64> = index::sample(&mut rng, examples.len(), batch).iter().map(|i| i as i64).collect();
        let batch = examples.select(&indices);
        let t = draw_times(TimeSampling::Uniform, indices.len(), &mut rng);
        let kept = column(t.iter().map(|_| f64::from(u8::from(!rng.random_bool(TEXT_DROPOUT)))), &batch.text);
        let noise = normal(&batch.latents.size(), noise)?.f_to_device(batch.latents.device())?;
        let batch = RouterExamples { latents: batch.noised(&t, &noise), text: batch.text * kept, labels: batch.labels };
        let value = self.gradients(&batch, &t)?;
        // A parameter that took no part, such as the text's in a batch without any, has no gradient.
        let grads: Vec<Tensor> =
            self.params.iter().map(|p| if p.grad().defined() { p.grad() } else { p.zeros_like() }).collect();
        let squares: Vec<Tensor> = grads.iter().map(|t| t.square().sum(Kind::Float)).collect();
        let norm = Tensor::stack(&squares, 0).sum(Kind::Float).sqrt().double_value(&[]);
        if !value.is_finite() || !norm.is_finite() {
            return Err(Error::Router(format!(
                "after {} steps its loss is {value}, its gradient's norm {norm}; lower --router-learning-rate",
                self.step
            )));
        }
        let recipe = &self.recipe;
        let progress = self.step as f64 / recipe.steps as f64;
        let cosine = (1.0 + (PI * progress).cos()) / 2.0;
        let rate = recipe.learning_rate * (LAST_RATE + (1.0 - LAST_RATE) * cosine);
        let adam = Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: recipe.weight_decay };
        self.step += 1;
        self.state.step(&self.params, &grads, self.step, rate, adam)?;
        Ok(value)
    }

    /// Leaves the gradients of the batch's loss at times `t` with the parameters, and returns the loss.
    fn gradients(&mut self, batch: &RouterExamples, t: &[f64]) -> Result<f64> {
        // Whether activations are kept decides only what an error advises, and no router computes them again.
        let mut compute = Compute { micro_batch: self.micro_batch, recompute: true };
        let loss = with_fitting_batch(&mut compute, |images| {
            self.params.iter_mut().for_each(Tensor::zero_grad);
            self.accumulate(batch, t, images as usize)
        });
        self.micro_batch = compute.micro_batch;
        loss.map_err(|error| match error {
            hdd_expert_runtime::Error::Memory { why, .. } => {
                Error::Router(format!("out of memory with one image at a time ({why}); choose another --device"))
            }
            error => error.into(),
        })
    }

    fn accumulate(&self, batch: &RouterExamples, t: &[f64], at_a_time: usize) -> hdd_expert_runtime::Result<f64> {
        let mut losses = Vec::new();
        for first in (0..t.len()).step_by(at_a_time) {
            let times = &t[first..(first + at_a_time).min(t.len())];
            let part = |tensor: &Tensor| tensor.narrow(0, first as i64, times.len() as i64);
            let logits = self.router.logits(&part(&batch.latents), times, Some(&part(&batch.text)));
            let loss = logits.cross_entropy_for_logits(&part(&batch.labels)) * (times.len() as f64 / t.len() as f64);
            loss.f_backward()?;
            losses.push(loss.detach()); // read once all parts are under way
        }
        Ok(losses.iter().map(|loss| loss.double_value(&[])).sum())
    }

    /// Where [`RouterTrainer::save`] leaves the run in `folder`; another run's file has another name.
    pub fn file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.safetensors", self.run))
    }

    /// What a resumed run needs; all but the step share storage with the trainer's.
    fn training_state(&self) -> Named {
        let mut state = Named::new();
        for (i, name) in self.router.parameters().into_keys().enumerate() {
            state.insert(format!("weights.{name}"), self.params[i].detach());
            state.insert(format!("first.{name}"), self.state.first[i].shallow_clone());
            state.insert(format!("second.{name}"), self.state.second[i].shallow_clone());
        }
        state.insert(STEP.into(), Tensor::from(self.step as i64));
        state
    }
}

/// Name of the number of steps done in a saved run.
const STEP: &str = "step";
