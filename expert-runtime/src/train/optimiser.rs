use crate::{Adam, AdamState, Result, lerp};
use hdd_protocol::Recipe;
use tch::Tensor;

/// Parameters with AdamW's moments and their running average.
pub struct Optimiser {
    /// The network's parameters, which share its memory.
    pub params: Vec<Tensor>,
    /// Averages of the same shapes.
    pub averages: Vec<Tensor>,
    /// AdamW's moments.
    pub state: AdamState,
}

impl Optimiser {
    /// One step of clipping, AdamW and average with the gradients that the parameters hold, all of them `scale` times
    /// too large and together of norm `norm` once divided. `step` counts from 1.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if libtorch refuses.
    pub fn step(&mut self, recipe: &Recipe, step: u64, learning_rate: f64, scale: f64, norm: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let grads = self.gradients();
        let factor = if norm > recipe.clip { recipe.clip / norm } else { 1.0 } / scale;
        if factor != 1.0 {
            for grad in &grads {
                let _ = grad.shallow_clone().g_mul_scalar_(factor);
            }
        }
        let adam = Adam {
            beta1: recipe.beta1,
            beta2: recipe.beta2,
            epsilon: recipe.epsilon,
            weight_decay: recipe.weight_decay,
        };
        self.state.step(&self.params, &grads, step, learning_rate, adam)?;
        lerp(&self.averages, &self.params, 1.0 - recipe.ema_decay)
    }

    /// Forgets the gradients.
    pub fn zero_grad(&mut self) {
        self.params.iter_mut().for_each(Tensor::zero_grad);
    }

    /// Norm of all gradients together.
    pub fn gradient_norm(&self) -> f64 {
        let norms: Vec<Tensor> = self.gradients().iter().map(Tensor::norm).collect();
        Tensor::stack(&norms, 0).norm().double_value(&[])
    }

    fn gradients(&self) -> Vec<Tensor> {
        self.params.iter().map(Tensor::grad).collect()
    }
}
