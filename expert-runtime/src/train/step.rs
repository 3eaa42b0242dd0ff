use super::{
    Batch, Compute, Examples, Loader,
    loss::loss,
    losses::Losses,
    memory::with_fitting_batch,
    optimiser::Optimiser,
    precision::{set_products, with_precision},
    recompute::{self, Tape},
    scaler::Scaler,
};
use crate::{
    AdamState, Checkpoint, CheckpointConfig, Error, Expert, Result,
    checkpoint::FORMAT,
    weights::{self, Named},
};
use hdd_protocol::{Digest, ExpertSpec, Recipe};
use std::{path::Path, time::Instant};
use tch::{Device, Tensor};

/// Images that a speed is measured with where more at a time are not faster: on the CPU.
const TIMED_ON_CPU: u32 = 8;

/// What one step did.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Mean loss over the last hundred steps that were not left out; none before the first.
    pub loss: Option<f32>,
    /// Gradient norm before clipping; not finite for a step that was left out.
    pub gradient_norm: f32,
    /// Step size.
    pub learning_rate: f64,
    /// What the loss is multiplied by: 1 but for half precision.
    pub loss_scale: f64,
    /// Steps left out so far because half precision overflowed.
    pub skipped: u64,
}

/// Why training returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// All steps are done.
    Finished,
    /// The caller asked.
    Interrupted,
}

/// An expert in training.
pub struct Trainer {
    expert: Expert,
    average: Expert,
    optimiser: Optimiser,
    scaler: Scaler,
    config: CheckpointConfig,
    losses: Losses,
}

impl Trainer {
    /// A run from fresh weights, which computes whole batches until [`set_compute`](Self::set_compute).
    ///
    /// # Errors
    /// A specification or recipe out of range.
    pub fn new(charter: Digest, spec: &ExpertSpec, recipe: &Recipe, seed: u64, device: Device) -> Result<Self> {
        recipe.check()?;
        let expert = Expert::new(spec, seed, device)?;
        let average = expert.copy()?;
        let config = CheckpointConfig {
            format: FORMAT,
            charter,
            spec: spec.clone(),
            recipe: recipe.clone(),
            compute: Compute::whole(recipe),
            seed,
            images: 0,
            step: 0,
            loss: 0.0,
            good: true,
            parent: None,
            zero_modulation: false,
        };
        let params: Vec<Tensor> = expert.parameters().into_values().collect();
        let averages = average.parameters().into_values().map(|t| t.detach()).collect();
        let optimiser = Optimiser { state: AdamState::new(&params), params, averages };
        let scaler = Scaler::new(recipe.precision);
        Ok(Self { expert, average, optimiser, scaler, config, losses: Losses::default() })
    }

    /// Begins from the weights of a safetensors file instead of a draw; `parent` is the file that they come from.
    ///
    /// # Errors
    /// As [`weights::read_into`].
    pub fn start_from(&mut self, model: &Path, parent: Digest) -> Result<()> {
        weights::read_into(model, &self.expert.parameters())?;
        weights::read_into(model, &self.average.parameters())?;
        self.config.parent = Some(parent);
        Ok(())
    }

    /// Begins with the blocks' shared modulation at zero (see [`Expert::zero_modulation`]); for a run without steps.
    pub fn zero_modulation(&mut self) {
        self.expert.zero_modulation();
        self.average.zero_modulation();
        self.config.zero_modulation = true;
    }

    /// A run that goes on from a checkpoint, exactly as if it had not stopped.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a file of it is damaged.
    pub fn resume(checkpoint: &Checkpoint, device: Device) -> Result<Self> {
        let config = &checkpoint.config;
        let mut trainer = Self::new(config.charter, &config.spec, &config.recipe, config.seed, device)?;
        let training = trainer.training_state();
        weights::read_into(&checkpoint.model(), &trainer.average.parameters())
            .and_then(|()| weights::read_into(&checkpoint.training(), &training))
            .map_err(|e| Error::Checkpoint {
                path: checkpoint.folder.clone(),
                why: format!("{e}; remove this folder to go on from the checkpoint before it"),
            })?;
        trainer.losses.restore(&training[LOSSES]);
        trainer.scaler.restore(&training[SCALER]);
        trainer.config = config.clone();
        trainer.set_compute(config.compute);
        Ok(trainer)
    }

    /// Description of the run as it stands.
    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// Changes the number of steps of a run that goes on.
    pub fn set_steps(&mut self, steps: u64) {
        self.config.recipe.steps = steps;
    }

    /// Changes how batches are computed, from the next step on.
    pub fn set_compute(&mut self, compute: Compute) {
        let micro_batch = compute.micro_batch.clamp(1, self.config.recipe.batch);
        self.config.compute = Compute { micro_batch, ..compute };
    }

    /// The averaged weights, which are what is published and previewed.
    pub fn average(&self) -> &Expert {
        &self.average
    }

    /// Trains until the recipe's steps are done or `on_step` says stop. `on_step` sees the trainer between steps, and may
    /// save or preview. Where the device's memory ends, the rest of the run computes fewer images at a time.
    ///
    /// # Errors
    /// [`Error::Diverged`] when the loss is not finite, or after warmup stays far above what it was, with checkpoints untouched;
    /// what the loader met; what `on_step` returns.
    pub fn run(
        &mut self,
        examples: &Examples,
        mut on_step: impl FnMut(&Self, Progress) -> Result<bool>,
    ) -> Result<Stop> {
        self.config.images = examples.len() as u64;
        set_products(self.config.recipe.precision)?;
        let loader = self.loader(examples)?;
        while self.config.step < self.config.recipe.steps {
            let progress = self.step(&loader.next_batch()?)?;
            if !on_step(self, progress)? && self.config.step < self.config.recipe.steps {
                return Ok(Stop::Interrupted);
            }
        }
        Ok(Stop::Finished)
    }

    /// Images a second of the passes that a step makes, forward and backward; the run is as before. None if it is done.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn speed(&mut self, examples: &Examples) -> Result<Option<f64>> {
        if self.config.step >= self.config.recipe.steps {
            return Ok(None);
        }
        set_products(self.config.recipe.precision)?;
        let mut images = self.config.compute.micro_batch;
        if self.expert.device() == Device::Cpu {
            images = images.min(TIMED_ON_CPU);
        }
        let batch = self.loader(examples)?.next_batch()?.part(0..images as usize)?;
        let mut seconds = f64::INFINITY; // the first pass is slower: libtorch prepares what it needs once
        for _ in 0..3 {
            let start = Instant::now();
            self.gradients(&batch)?;
            self.optimiser.gradient_norm(); // waits for the device
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
        self.optimiser.zero_grad();
        Ok(Some(f64::from(images) / seconds.max(1e-9)))
    }

    /// Saves the run under `parent`.
    ///
    /// # Errors
    /// As [`Checkpoint::save`].
    pub fn save(&self, parent: &Path) -> Result<Checkpoint> {
        Checkpoint::save(parent, &self.config, &self.average.parameters(), &self.training_state())
    }

    fn loader(&self, examples: &Examples) -> Result<Loader> {
        let config = &self.config;
        Loader::start(examples, &config.recipe, config.seed, config.step, self.expert.device())
    }

    fn step(&mut self, batch: &Batch) -> Result<Progress> {
        let recipe = self.config.recipe.clone();
        let step = self.config.step;
        let value = self.gradients(batch)? as f32;
        let scale = self.scaler.scale();
        let norm = self.optimiser.gradient_norm() / scale;
        let finite = value.is_finite() && norm.is_finite();
        if !self.scaler.update(finite) {
            self.optimiser.zero_grad();
            return Err(Error::Diverged { step, why: format!("the loss is {value}, the gradient norm {norm}") });
        }
        let learning_rate = recipe.learning_rate * ((step + 1) as f64 / recipe.warmup.max(1) as f64).min(1.0);
        if finite {
            let taken = step + 1 - self.scaler.skipped();
            self.optimiser.step(&recipe, taken, learning_rate, scale, norm)?;
            self.losses.push(value);
            self.config.loss = self.losses.mean();
            self.config.good = !self.losses.have_risen();
        }
        self.optimiser.zero_grad();
        self.config.step += 1;
        if let Some((now, lowest)) = self.losses.diverged().filter(|_| self.config.step > recipe.warmup) {
            let why =
                format!("the loss is {now:.3}, {:.1} times the {lowest:.3} that it was at its lowest", now / lowest);
            return Err(Error::Diverged { step: self.config.step, why });
        }
        Ok(Progress {
            step: self.config.step,
            loss: (self.config.step > self.scaler.skipped()).then_some(self.config.loss),
            gradient_norm: norm as f32,
            learning_rate,
            loss_scale: self.scaler.scale(),
            skipped: self.scaler.skipped(),
        })
    }

    /// Leaves the gradients of the batch's scaled loss with the parameters, and returns the loss.
    fn gradients(&mut self, batch: &Batch) -> Result<f64> {
        let mut compute = self.config.compute;
        let loss = with_fitting_batch(&mut compute, |images| {
            self.optimiser.zero_grad();
            self.accumulate(batch, images as usize)
        });
        self.config.compute = compute;
        loss
    }

    fn accumulate(&self, batch: &Batch, at_a_time: usize) -> Result<f64> {
        let (network, precision) = (self.expert.network(), self.config.recipe.precision);
        let device = self.expert.device();
        let images = batch.times.len();
        let mut losses = Vec::new();
        for first in (0..images).step_by(at_a_time) {
            let rows = first..(first + at_a_time).min(images);
            let share = rows.len() as f64 / images as f64;
            let part = batch.part(rows)?.to(device)?;
            let (loss, tape) = with_precision(precision, device, || Ok(self.forward(&part)))?;
            (&loss * (share * self.scaler.scale())).f_backward()?;
            if let Some(tape) = tape {
                tape.backward(network, |block| with_precision(precision, device, || Ok(block())))?;
            }
            losses.push(loss.detach() * share); // read once all parts are under way
        }
        Ok(losses.iter().map(|loss| loss.double_value(&[])).sum())
    }

    fn forward(&self, batch: &Batch) -> (Tensor, Option<Tape>) {
        let mut tape = None;
        let loss = loss(&self.expert, self.config.recipe.weighting, batch, |x, times, text| {
            if !self.config.compute.recompute {
                return self.expert.forward(x, times, text);
            }
            self.expert.around(x, times, |x, times| {
                let (output, kept) = recompute::forward(self.expert.network(), x, times, text);
                tape = Some(kept);
                output
            })
        });
        (loss, tape)
    }

    /// What a resumed run needs beside the averages; tensors of weights and moments share storage with the trainer's.
    fn training_state(&self) -> Named {
        let names: Vec<String> = self.expert.parameters().into_keys().collect();
        let mut state = Named::new();
        for (i, name) in names.iter().enumerate() {
            state.insert(format!("weights.{name}"), self.optimiser.params[i].detach());
            state.insert(format!("first.{name}"), self.optimiser.state.first[i].shallow_clone());
            state.insert(format!("second.{name}"), self.optimiser.state.second[i].shallow_clone());
        }
        state.insert(LOSSES.into(), self.losses.state());
        state.insert(SCALER.into(), self.scaler.state());
        state
    }
}

/// Name of the last losses in `training.safetensors`.
const LOSSES: &str = "losses";
/// Name of the loss scale there.
const SCALER: &str = "scaler";
