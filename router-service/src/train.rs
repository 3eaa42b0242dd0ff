//! Training of the router (paper Section 6.3): cross-entropy to the clusters' labels on the linear path.

use crate::{Error, Result, Router};
use hdd_expert_runtime::{Adam, AdamState, column, train::draw_times};
use hdd_protocol::{RouterRecipe, TimeSampling};
use rand::{Rng, SeedableRng, seq::index};
use rand_chacha::ChaCha12Rng;
use std::f64::consts::PI;
use tch::{Kind, Tensor};

/// Bins of time that accuracy is reported for.
const BINS: usize = 10;

/// Labelled latents.
pub struct RouterExamples {
    /// `(N, C, H, W)`
    pub latents: Tensor,
    /// `(N, L, W)`
    pub text: Tensor,
    /// Cluster of each image, `(N)` int64.
    pub labels: Tensor,
}

/// Share of right predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterAccuracy {
    /// Over all times.
    pub mean: f64,
    /// In ten equal bins of `t`, from data to noise.
    pub per_bin: [f64; BINS],
}

impl RouterExamples {
    fn len(&self) -> usize {
        self.latents.size()[0] as usize
    }

    fn select(&self, indices: &[i64]) -> Self {
        let indices = Tensor::from_slice(indices).to_device(self.latents.device());
        let rows = |t: &Tensor| t.index_select(0, &indices);
        Self { latents: rows(&self.latents), text: rows(&self.text), labels: rows(&self.labels) }
    }

    /// Linear-path points of all examples at `t`.
    fn noised(&self, t: &[f64]) -> Tensor {
        let column = |f: fn(f64) -> f64| column(t.iter().map(|&t| f(t)), &self.latents);
        column(|t| 1.0 - t) * &self.latents + column(|t| t) * self.latents.randn_like()
    }
}

/// Trains `router` in place; `on_step` hears of steps done and the loss, and stops training by returning false.
///
/// Text is dropped for a tenth of the images, so that the router also serves requests without a prompt.
///
/// # Errors
/// [`Error::Router`] if the loss is no number; what libtorch refuses.
pub fn train_router(
    router: &Router,
    recipe: &RouterRecipe,
    examples: &RouterExamples,
    seed: u64,
    mut on_step: impl FnMut(u64, f64) -> bool,
) -> Result<()> {
    let mut params: Vec<Tensor> = router.parameters().into_values().collect();
    let state = AdamState::new(&params);
    let adam = Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: recipe.weight_decay };
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    tch::manual_seed(rng.random());
    let batch = (recipe.batch as usize).min(examples.len());
    for step in 0..recipe.steps {
        let indices: Vec<i64> = index::sample(&mut rng, examples.len(), batch).iter().map(|i| i as i64).collect();
        let batch = examples.select(&indices);
        let t = draw_times(TimeSampling::Uniform, indices.len(), &mut rng);
        let kept = column(t.iter().map(|_| f64::from(u8::from(rng.random_bool(0.9)))), &batch.text);
        let loss =
            router.logits(&batch.noised(&t), &t, Some(&(&batch.text * kept))).cross_entropy_for_logits(&batch.labels);
        loss.backward();
        let grads: Vec<Tensor> =
            params.iter().map(|p| if p.grad().defined() { p.grad() } else { p.zeros_like() }).collect();
        let progress = step as f64 / recipe.steps as f64;
        let rate = recipe.learning_rate * (0.01 + 0.99 * (1.0 + (PI * progress).cos()) / 2.0);
        state.step(&params, &grads, step + 1, rate, adam)?;
        for param in &mut params {
            param.zero_grad();
        }
        let loss = loss.double_value(&[]);
        if !loss.is_finite() {
            return Err(Error::Router(format!("its loss is {loss} at step {step}; lower the charter's learning rate")));
        }
        if !on_step(step + 1, loss) {
            break;
        }
    }
    Ok(())
}

impl Router {
    /// Accuracy on `examples`, each at one time of every bin; with their text if `with_text`.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn accuracy(&self, examples: &RouterExamples, with_text: bool) -> Result<RouterAccuracy> {
        let _guard = tch::no_grad_guard();
        let mut per_bin = [0.0; BINS];
        for (bin, share) in per_bin.iter_mut().enumerate() {
            let t = vec![(bin as f64 + 0.5) / BINS as f64; examples.len()];
            let text = with_text.then_some(&examples.text);
            let guess = self.logits(&examples.noised(&t), &t, text).argmax(-1, false);
            *share = guess.eq_tensor(&examples.labels).to_kind(Kind::Double).mean(None).double_value(&[]);
        }
        Ok(RouterAccuracy { mean: per_bin.iter().sum::<f64>() / BINS as f64, per_bin })
    }
}
