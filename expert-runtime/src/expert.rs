use crate::{
    ClusterExpert, Coefficients, Condition, NoisePath, Result, VelocityField, column, linear_velocity,
    network::Dit,
    precondition, seeded,
    weights::{self, Named},
};
use hdd_protocol::{Conversion, ExpertSpec, Objective, Schedule, TimestepMap};
use std::{collections::HashMap, path::Path};
use tch::{Device, Tensor, nn};

/// A network with the specification that says what its output means.
pub struct Expert {
    spec: ExpertSpec,
    path: NoisePath,
    clock: Option<NoisePath>, // DDPM's, where the network reads the noise level on it
    network: Dit,
    store: nn::VarStore,
}

impl Expert {
    /// A freshly initialised expert; the same `seed` gives the same weights on the same kind of device.
    ///
    /// # Errors
    /// A specification out of range.
    pub fn new(spec: &ExpertSpec, seed: u64, device: Device) -> Result<Self> {
        spec.check()?;
        let store = nn::VarStore::new(device);
        let network = seeded(seed, || Dit::new(&store.root(), &spec.architecture));
        let clock = (spec.timestep_map == TimestepMap::Snr).then(|| NoisePath::new(&Schedule::DDPM));
        Ok(Self { spec: spec.clone(), path: NoisePath::new(&spec.schedule), clock, network, store })
    }

    /// An expert with the weights of a safetensors file.
    ///
    /// # Errors
    /// As [`weights::read_into`]: missing, unknown, misshapen or non-finite tensors.
    pub fn load(spec: &ExpertSpec, weights: &Path, device: Device) -> Result<Self> {
        let mut expert = Self::new(spec, 0, device)?;
        weights::read_into(weights, &expert.parameters())?;
        expert.store.freeze();
        Ok(expert)
    }

    /// Another expert with the same weights, in memory of its own.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] without memory.
    pub fn copy(&self) -> Result<Self> {
        let mut copy = Self::new(&self.spec, 0, self.device())?;
        copy.store.copy(&self.store)?;
        Ok(copy)
    }

    /// Sets the modulation that the blocks share to zero, so that only their tables modulate at first (Section 2.5).
    pub fn zero_modulation(&mut self) {
        self.network.zero_modulation();
    }

    /// Writes the weights to a file.
    ///
    /// # Errors
    /// As [`weights::write`].
    pub fn save(&self, path: &Path) -> Result<()> {
        weights::write(path, &self.parameters(), HashMap::from([("format".into(), "pt".into())]))
    }

    /// What the expert is.
    pub fn spec(&self) -> &ExpertSpec {
        &self.spec
    }

    /// The noising path that it was trained on.
    pub fn path(&self) -> &NoisePath {
        &self.path
    }

    /// The network.
    pub fn network(&self) -> &Dit {
        &self.network
    }

    /// The times `t` of its own path as the network reads them, in [0, 1] (see [`TimestepMap`]).
    pub fn read_times(&self, t: &[f64]) -> Vec<f64> {
        let Some(clock) = &self.clock else { return t.to_vec() };
        t.iter().map(|&t| clock.time_of_log_snr(self.path.log_snr(t))).collect()
    }

    /// The raw output at `x (B, C, H, W)` on its own path at times `t`, one an image, under `text (B, L, W)`; shaped as `x`.
    pub fn forward(&self, x: &Tensor, t: &[f64], text: &Tensor) -> Tensor {
        self.around(x, t, |x, t| self.network.forward(x, t, text))
    }

    /// The raw output of `network`, which is asked about `x (B, C, H, W)` and `t` as this expert's network is.
    pub fn around(&self, x: &Tensor, t: &[f64], network: impl FnOnce(&Tensor, &[f64]) -> Tensor) -> Tensor {
        let times = self.read_times(t);
        let Some(std) = self.spec.preconditioning else { return network(x, &times) };
        let at: Vec<Coefficients> = t.iter().map(|&t| self.path.at(t)).collect();
        precondition((self.spec.objective, f64::from(std)), x, &at, |x| network(x, &times))
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.store.device()
    }

    /// Named parameters, in the order of their names; they share storage with the network.
    pub fn parameters(&self) -> Named {
        self.store.variables().into_iter().collect()
    }

    /// Trainable parameters.
    pub fn parameter_count(&self) -> u64 {
        self.store.variables().values().map(|t| t.numel() as u64).sum()
    }

    /// This expert as a velocity on the linear path.
    pub fn field(&self, conversion: Conversion, clamp: f64) -> ExpertField<'_> {
        ExpertField { expert: self, conversion, clamp }
    }
}

/// An expert with its conversion.
pub struct ExpertField<'a> {
    expert: &'a Expert,
    conversion: Conversion,
    clamp: f64,
}

impl ExpertField<'_> {
    /// The velocity under one text, `(B, C, H, W)`.
    fn unguided(&self, x: &Tensor, t: &[f64], text: &Tensor) -> Tensor {
        let Expert { spec, path, .. } = self.expert;
        let predict = |x: &Tensor, t: &[f64]| self.expert.forward(x, t, text);
        linear_velocity((spec.objective, path), self.conversion, self.clamp, (x, t), predict)
    }
}

impl ClusterExpert for Expert {
    fn cluster(&self) -> u16 {
        self.spec.cluster
    }

    fn objective(&self) -> Objective {
        self.spec.objective
    }

    fn schedule(&self) -> Schedule {
        self.spec.schedule
    }

    fn velocity_field(&self, conversion: Conversion, clamp: f64) -> impl VelocityField {
        self.field(conversion, clamp)
    }
}

impl VelocityField for ExpertField<'_> {
    fn velocity(&self, x: &Tensor, t: &[f64], condition: &Condition) -> Result<Tensor> {
        let batch = x.size()[0];
        let null = || self.expert.network.null_text(batch);
        let text = condition.text.as_ref().map_or_else(null, Tensor::shallow_clone);
        let Some(guidance) = &condition.guidance else { return Ok(self.unguided(x, t, &text)) };
        // Both halves in one batch.
        let negative = guidance.negative.as_ref().map_or_else(null, Tensor::shallow_clone);
        let twice: Vec<f64> = [t, t].concat();
        let both = self.unguided(&Tensor::cat(&[x, x], 0), &twice, &Tensor::cat(&[text, negative], 0));
        let (c, u) = (both.narrow(0, 0, batch), both.narrow(0, batch, batch));
        Ok(&u + column(guidance.scale.iter().copied(), x) * (c - &u))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdd_protocol::Architecture;
    use std::thread;

    #[test]
    fn a_seed_gives_its_weights_whatever_other_threads_draw() {
        let architecture =
            Architecture { channels: 3, size: 8, text_width: 6, text_length: 3, ..Architecture::new(32, 2, 4, 2) };
        let spec = ExpertSpec {
            architecture,
            objective: Objective::Velocity,
            schedule: Schedule::Linear,
            cluster: 0,
            timestep_map: TimestepMap::Paper,
            preconditioning: None,
        };
        let first = Expert::new(&spec, 7, Device::Cpu).unwrap();
        assert_eq!(first.copy().unwrap().parameters(), first.parameters());
        assert_ne!(Expert::new(&spec, 8, Device::Cpu).unwrap().parameters(), first.parameters());
        let draw = || (0..10).map(|_| Expert::new(&spec, 7, Device::Cpu).unwrap().parameters()).collect::<Vec<_>>();
        thread::scope(|scope| {
            for thread in [0; 4].map(|_| scope.spawn(draw)) {
                assert!(thread.join().unwrap().iter().all(|drawn| *drawn == first.parameters()));
            }
        });
    }
}
