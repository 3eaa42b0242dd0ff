use crate::{
    Condition, NoisePath, Result, VelocityField, aligned_point, aligned_velocity, column,
    network::Dit,
    paper_velocity,
    weights::{self, Named},
};
use hdd_protocol::{Conversion, ExpertSpec, Objective, Schedule};
use std::{collections::HashMap, path::Path};
use tch::{Device, Tensor, nn};

/// A network with the specification that says what its output means.
pub struct Expert {
    spec: ExpertSpec,
    path: NoisePath,
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
        tch::manual_seed(seed as i64);
        let store = nn::VarStore::new(device);
        let network = Dit::new(&store.root(), &spec.architecture);
        Ok(Self { spec: spec.clone(), path: NoisePath::new(&spec.schedule), network, store })
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

    /// Writes the weights to a new file.
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
        let Expert { spec, path, network, .. } = self.expert;
        let kind = (spec.objective, path);
        match self.conversion {
            // A velocity on the linear path needs no conversion.
            _ if spec.objective == Objective::Velocity && spec.schedule == Schedule::Linear => {
                network.forward(x, t, text)
            }
            Conversion::Aligned { floor } => {
                let (own_t, factor) = aligned_point(path, t, f64::from(floor));
                let own_x = x * column(factor, x);
                let u = network.forward(&own_x, &own_t, text);
                aligned_velocity(kind, &u, (&own_x, &own_t), (x, t), self.clamp)
            }
            Conversion::Paper { damping } => {
                paper_velocity(kind, &network.forward(x, t, text), (x, t), self.clamp, damping)
            }
        }
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
