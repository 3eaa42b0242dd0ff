use crate::{Result, error::ensure};
use serde::{Deserialize, Serialize};

const NAME: &str = "sample request";

/// Which experts are evaluated at a point (Section 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertSelection {
    /// The likeliest expert alone.
    Top1,
    /// The `k` likeliest, 1 to 1,024, weights renormalised.
    TopK(u16),
    /// All, by the router's weights.
    Full,
    /// Experts on the linear path above `time`, the others at or below; `reversed` swaps the sides.
    Threshold {
        /// The switching time, 0 to 1.
        time: f32,
        /// Converted experts above instead of below.
        reversed: bool,
    },
}

/// How an expert's output becomes a velocity on the linear path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conversion {
    /// Asks the expert about the point of its own path with the same signal-to-noise ratio as the sampler's point.
    Aligned {
        /// The expert is never asked beyond `t = 1 - floor`; 1e-6 to 0.1.
        floor: f32,
    },
    /// The paper's Eq. 5-8 and 22-30 at the same time.
    Paper {
        /// Whether Eq. 31's damping applies.
        damping: bool,
    },
}

impl Conversion {
    /// Aligned with the floor 0.01.
    pub const DEFAULT: Self = Self::Aligned { floor: 0.01 };
}

/// Integrates the velocity from `t = 1` to `t = 0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// One evaluation a step, first order.
    Euler,
    /// Two evaluations a step but one for the last, second order.
    Heun,
    /// One evaluation a step, second order: Adams and Bashforth's two-step method on any time grid.
    Multistep,
}

impl Solver {
    /// Field evaluations that `steps` steps cost.
    pub fn evaluations(self, steps: u32) -> u64 {
        match self {
            Self::Euler | Self::Multistep => steps.into(),
            Self::Heun => (2 * u64::from(steps)).saturating_sub(1),
        }
    }
}

/// What a client asks an aggregator for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleRequest {
    /// Text of the pictures, UTF-8 within the limits' `prompt_bytes`. The aggregator reads it.
    pub prompt: String,
    /// Text to steer away from, as long as a prompt at most; the learned null if empty.
    pub negative: String,
    /// Pictures, 1 to the limits' `count`.
    pub count: u32,
    /// Seed of the first picture; picture `i` has the noise of `seed + i`, whatever it is sampled beside.
    pub seed: u64,
    /// Steps of the solver, 1 to the limits' `steps`.
    pub steps: u32,
    /// Guidance scale `g` in `u + g (c - u)`, 0 to 50; 1 is none.
    pub guidance: f32,
    /// Which experts are asked.
    pub selection: ExpertSelection,
    /// How their outputs are converted.
    pub conversion: Conversion,
    /// If set, experts off the linear path are asked only at or below this time, 0 to 1 (Section 7.3).
    pub converted_below: Option<f32>,
    /// The solver.
    pub solver: Solver,
    /// Shift of the time grid, 0.1 to 20: 1 is uniform, above it more steps are spent at high noise.
    pub shift: f32,
}

impl Default for SampleRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative: String::new(),
            count: 1,
            seed: 0,
            steps: 50,
            guidance: 3.0,
            selection: ExpertSelection::TopK(2),
            conversion: Conversion::DEFAULT,
            converted_below: None,
            solver: Solver::Euler,
            shift: 1.0,
        }
    }
}

/// Bounds that an aggregator puts on a request before it is queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleLimits {
    /// Longest prompt, bytes of UTF-8.
    pub prompt_bytes: u32,
    /// Most pictures a request.
    pub count: u32,
    /// Most steps.
    pub steps: u32,
    /// Most field evaluations: pictures x steps x evaluations a step x 2 with guidance.
    pub evaluations: u64,
}

impl Default for SampleLimits {
    fn default() -> Self {
        Self { prompt_bytes: 1000, count: 64, steps: 1000, evaluations: 64_000 }
    }
}

impl SampleLimits {
    /// # Errors
    /// [`crate::Error::OutOfRange`] if a bound is zero or the prompt's passes what a frame can carry.
    pub fn check(&self) -> Result<()> {
        let ok = (1..=16_384).contains(&self.prompt_bytes) && self.count > 0 && self.steps > 0 && self.evaluations > 0;
        ensure(ok, "sample limits", "bounds", || "must be above 0, prompts at most 16,384 bytes".into())
    }
}

impl SampleRequest {
    /// Field evaluations that this request costs.
    pub fn evaluations(&self) -> u64 {
        let halves = if self.guidance == 1.0 { 1 } else { 2 };
        u64::from(self.count).saturating_mul(self.solver.evaluations(self.steps)).saturating_mul(halves)
    }

    /// # Errors
    /// [`crate::Error::OutOfRange`] with the field, its value and what is allowed.
    pub fn check(&self, limits: &SampleLimits) -> Result<()> {
        let at_most = |field, value: u32, limit: u32| {
            ensure((1..=limit).contains(&value), NAME, field, || format!("is {value}, must be 1 to {limit}"))
        };
        for (field, text) in [("prompt", &self.prompt), ("negative", &self.negative)] {
            ensure(text.len() <= limits.prompt_bytes as usize, NAME, field, || {
                format!("has {} bytes, at most {} are allowed; shorten it", text.len(), limits.prompt_bytes)
            })?;
        }
        at_most("count", self.count, limits.count)?;
        at_most("steps", self.steps, limits.steps)?;
        ensure(self.seed.checked_add(u64::from(self.count)).is_some(), NAME, "seed", || {
            "is so large that seed + count passes 2^64".into()
        })?;
        ensure((0.0..=50.0).contains(&self.guidance), NAME, "guidance", || {
            format!("is {}, must be 0 to 50", self.guidance)
        })?;
        ensure((0.1..=20.0).contains(&self.shift), NAME, "shift", || format!("is {}, must be 0.1 to 20", self.shift))?;
        let unit = |field, t: f32| ensure((0.0..=1.0).contains(&t), NAME, field, || format!("is {t}, must be 0 to 1"));
        match self.selection {
            ExpertSelection::TopK(k) => at_most("k", u32::from(k), 1024)?,
            ExpertSelection::Threshold { time, .. } => unit("threshold", time)?,
            ExpertSelection::Top1 | ExpertSelection::Full => {}
        }
        if let Some(t) = self.converted_below {
            unit("converted_below", t)?;
        }
        if let Conversion::Aligned { floor } = self.conversion {
            ensure((1e-6..=0.1).contains(&floor), NAME, "floor", || format!("is {floor}, must be 1e-6 to 0.1"))?;
        }
        ensure(self.evaluations() <= limits.evaluations, NAME, "cost", || {
            format!(
                "is {} evaluations, at most {}; ask for fewer pictures or steps",
                self.evaluations(),
                limits.evaluations
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_requests_are_refused_before_they_are_queued() {
        let limits = SampleLimits::default();
        let good = SampleRequest { prompt: "a cat".into(), ..Default::default() };
        good.check(&limits).unwrap();
        let check = |bad: SampleRequest, word: &str| {
            let text = bad.check(&limits).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        };
        check(SampleRequest { count: 1_000_000_000, ..good.clone() }, "count");
        check(SampleRequest { count: 0, ..good.clone() }, "count");
        check(SampleRequest { steps: 1_000_000, ..good.clone() }, "steps");
        check(SampleRequest { count: 64, steps: 1000, ..good.clone() }, "cost");
        check(SampleRequest { guidance: f32::NAN, ..good.clone() }, "guidance");
        check(SampleRequest { shift: f32::NAN, ..good.clone() }, "shift");
        check(SampleRequest { shift: 0.0, ..good.clone() }, "shift is 0, must be 0.1 to 20");
        check(SampleRequest { prompt: "x".repeat(1001), ..good.clone() }, "prompt");
        check(SampleRequest { seed: u64::MAX, ..good.clone() }, "seed");
        check(SampleRequest { selection: ExpertSelection::TopK(0), ..good }, "k is 0");
    }

    #[test]
    fn a_request_costs_what_its_solver_evaluates() {
        let cost = |solver, guidance| {
            SampleRequest { count: 3, steps: 10, solver, guidance, ..Default::default() }.evaluations()
        };
        assert_eq!([Solver::Euler, Solver::Multistep, Solver::Heun].map(|s| cost(s, 1.0)), [30, 30, 57]);
        assert_eq!([Solver::Euler, Solver::Multistep, Solver::Heun].map(|s| cost(s, 3.0)), [60, 60, 114]);
    }
}
