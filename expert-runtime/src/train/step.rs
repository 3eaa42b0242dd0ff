use super::{Examples, draw_times};
use crate::{
    Adam, AdamState, Checkpoint, CheckpointConfig, Coefficients, Error, Expert, Result, column, lerp,
    objective::target,
    weights::{self, Named},
};
use hdd_protocol::{Digest, ExpertSpec, LossWeighting, Recipe};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use std::{collections::VecDeque, path::Path};
use tch::{Device, Tensor};

/// Losses that the reported mean covers.
const WINDOW: usize = 100;

/// What one step did.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Mean loss over the last hundred steps.
    pub loss: f32,
    /// Gradient norm before clipping.
    pub gradient_norm: f32,
    /// Step size.
    pub learning_rate: f64,
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
    state: AdamState,
    params: Vec<Tensor>,
    averages: Vec<Tensor>,
    config: CheckpointConfig,
    losses: VecDeque<f32>,
}

impl Trainer {
    /// A run from fresh weights.
    ///
    /// # Errors
    /// A specification or recipe out of range.
    pub fn new(charter: Digest, spec: &ExpertSpec, recipe: &Recipe, seed: u64, device: Device) -> Result<Self> {
        recipe.check()?;
        let (expert, average) = (Expert::new(spec, seed, device)?, Expert::new(spec, seed, device)?);
        let config = CheckpointConfig {
            format: 1,
            charter,
            spec: spec.clone(),
            recipe: recipe.clone(),
            seed,
            images: 0,
            step: 0,
            loss: 0.0,
        };
        let params: Vec<Tensor> = expert.parameters().into_values().collect();
        let averages: Vec<Tensor> = average.parameters().into_values().map(|t| t.detach()).collect();
        Ok(Self { state: AdamState::new(&params), expert, average, params, averages, config, losses: VecDeque::new() })
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
        trainer.losses = training
            .get(LOSSES)
            .and_then(|t| Vec::<f32>::try_from(t).ok())
            .map_or_else(VecDeque::new, |losses| losses.into_iter().filter(|&loss| loss >= 0.0).collect());
        trainer.config = config.clone();
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

    /// The averaged weights, which are what is published and previewed.
    pub fn average(&self) -> &Expert {
        &self.average
    }

    /// Trains until the recipe's steps are done or `on_step` says stop. `on_step` sees the trainer between steps, and may
    /// save or preview.
    ///
    /// # Errors
    /// [`Error::Diverged`] when the loss is not finite, with checkpoints untouched; what `on_step` returns.
    pub fn run(
        &mut self,
        examples: &Examples,
        mut on_step: impl FnMut(&Self, Progress) -> Result<bool>,
    ) -> Result<Stop> {
        self.config.images = examples.len() as u64;
        while self.config.step < self.config.recipe.steps {
            let progress = self.step(examples)?;
            if !on_step(self, progress)? && self.config.step < self.config.recipe.steps {
                return Ok(Stop::Interrupted);
            }
        }
        Ok(Stop::Finished)
    }

    /// Saves the run under `parent`.
    ///
    /// # Errors
    /// As [`Checkpoint::save`].
    pub fn save(&self, parent: &Path) -> Result<Checkpoint> {
        Checkpoint::save(parent, &self.config, &self.average.parameters(), &self.training_state())
    }

    fn step(&mut self, examples: &Examples) -> Result<Progress> {
        let recipe = self.config.recipe.clone();
        let step = self.config.step;
        let mut rng = ChaCha12Rng::seed_from_u64(self.config.seed);
        rng.set_stream(u64::MAX - step); // epochs' orders use the streams from 0 up
        tch::manual_seed(rng.random());
        let (x0, text) = examples.batch(self.config.seed, step, recipe.batch as usize);
        let times = draw_times(recipe.times, x0.size()[0] as usize, &mut rng);
        let loss = self.loss(&x0, &text, &times, &mut rng);
        loss.backward();

        let grads: Vec<Tensor> = self.params.iter().map(Tensor::grad).collect();
        let norm = global_norm(&grads);
        let value = loss.double_value(&[]) as f32;
        if !value.is_finite() || !norm.is_finite() {
            let why = format!(
                "the loss is {value}, the gradient norm {norm}; train under another --name with a lower --learning-rate; the last checkpoint is kept"
            );
            return Err(Error::Diverged { step, why });
        }
        let _guard = tch::no_grad_guard();
        if norm > recipe.clip {
            for grad in &grads {
                let _ = grad.shallow_clone().g_mul_scalar_(recipe.clip / norm);
            }
        }
        let learning_rate = recipe.learning_rate * ((step + 1) as f64 / recipe.warmup.max(1) as f64).min(1.0);
        let adam = Adam {
            beta1: recipe.beta1,
            beta2: recipe.beta2,
            epsilon: recipe.epsilon,
            weight_decay: recipe.weight_decay,
        };
        self.state.step(&self.params, &grads, step + 1, learning_rate, adam)?;
        for param in &mut self.params {
            param.zero_grad();
        }
        lerp(&self.averages, &self.params, 1.0 - recipe.ema_decay)?;

        self.losses.push_back(value);
        if self.losses.len() > WINDOW {
            self.losses.pop_front();
        }
        self.config.step += 1;
        self.config.loss = self.losses.iter().sum::<f32>() / self.losses.len() as f32;
        Ok(Progress { step: self.config.step, loss: self.config.loss, gradient_norm: norm as f32, learning_rate })
    }

    /// Weighted squared error of the raw output against the objective's target (Eq. 3, 4), a scalar.
    fn loss(&self, x0: &Tensor, text: &Tensor, times: &[f64], rng: &mut impl Rng) -> Tensor {
        let spec = &self.config.spec;
        let at: Vec<Coefficients> = times.iter().map(|&t| self.expert.path().at(t)).collect();
        let eps = x0.randn_like();
        let x = column(at.iter().map(|k| k.alpha), x0) * x0 + column(at.iter().map(|k| k.sigma), x0) * &eps;
        let dropped = times.iter().map(|_| f64::from(u8::from(rng.random_bool(self.config.recipe.text_dropout))));
        let dropped = column(dropped, text); // (B, 1, 1)
        let null = self.expert.network().null_text(x0.size()[0]);
        let text = text.lerp_tensor(&null, &dropped);
        let error = self.expert.network().forward(&x, times, &text) - target(spec.objective, x0, &eps, &at);
        let square = error.square();
        match self.config.recipe.weighting {
            LossWeighting::Uniform => square.mean(None),
            LossWeighting::InverseAlpha { limit } => {
                let weight = |k: &Coefficients| (1.0 / (k.alpha * k.alpha)).min(f64::from(limit));
                (square * column(at.iter().map(weight), x0)).mean(None)
            }
        }
    }

    /// What a resumed run needs beside the averages; tensors share storage with the trainer's.
    fn training_state(&self) -> Named {
        let names: Vec<String> = self.expert.parameters().into_keys().collect();
        let mut state = Named::new();
        for (i, name) in names.iter().enumerate() {
            state.insert(format!("weights.{name}"), self.params[i].detach());
            state.insert(format!("first.{name}"), self.state.first[i].shallow_clone());
            state.insert(format!("second.{name}"), self.state.second[i].shallow_clone());
        }
        let mut losses = [-1.0f32; WINDOW]; // -1 marks an empty place
        losses.iter_mut().zip(&self.losses).for_each(|(slot, loss)| *slot = *loss);
        state.insert(LOSSES.into(), Tensor::from_slice(&losses));
        state
    }
}

/// Name of the last losses in `training.safetensors`.
const LOSSES: &str = "losses";

fn global_norm(tensors: &[Tensor]) -> f64 {
    let squares: Vec<Tensor> = tensors.iter().map(|t| t.square().sum(tch::Kind::Float)).collect();
    Tensor::stack(&squares, 0).sum(tch::Kind::Float).sqrt().double_value(&[])
}
