//! What training and serving meet in: the velocity field, its condition, and the two parts of a mixture of experts. Networks
//! and exact oracles implement the same traits.

use crate::Result;
use hdd_protocol::{Conversion, Objective, Schedule};
use tch::Tensor;

/// Classifier-free guidance (Ho and Salimans, 2022).
#[derive(Debug)]
pub struct Guidance {
    /// Scale `g` in `u + g (c - u)`, one an image.
    pub scale: Vec<f64>,
    /// What to steer away from, `(B, L, W)`; the learned null where absent.
    pub negative: Option<Tensor>,
}

/// What the pictures of a batch are asked to show.
#[derive(Debug)]
pub struct Condition {
    /// Text tokens, `(B, L, W)`; the learned null where absent.
    pub text: Option<Tensor>,
    /// Guidance; without it the conditional velocity alone is evaluated.
    pub guidance: Option<Guidance>,
}

impl Condition {
    /// The condition of some of the images: `rows`, which `index` holds as an int64 tensor.
    pub fn rows(&self, rows: &[usize], index: &Tensor) -> Self {
        let select = |t: &Tensor| t.index_select(0, index);
        let guidance = self.guidance.as_ref().map(|g| Guidance {
            scale: rows.iter().map(|&row| g.scale[row]).collect(),
            negative: g.negative.as_ref().map(select),
        });
        Self { text: self.text.as_ref().map(select), guidance }
    }
}

/// A velocity on the linear path's clock: the one seam between training and serving.
///
/// `v = eps - x0` on `x_t = (1 - t) x0 + t eps` (Eq. 4); sampling goes `x <- x - v dt` from `t = 1` to `t = 0`.
pub trait VelocityField {
    /// The velocity at `x`, `(B, ...)`, and the times `t`, one an image in [0, 1].
    ///
    /// # Errors
    /// What libtorch refuses: out of memory, in the main.
    fn velocity(&self, x: &Tensor, t: &[f64], condition: &Condition) -> Result<Tensor>;
}

/// `p(k | x, t)` over the clusters of a charter (paper Eq. 1 and 2): a router, or the exact posterior of an oracle.
pub trait ClusterPosterior {
    /// The posterior at `x`, `(B, ...)`, on the linear path at the times `t`: one row an image, one number a cluster,
    /// summing to 1. `text (B, L, W)` is what the images are asked to show.
    ///
    /// # Errors
    /// What libtorch refuses.
    fn posterior(&self, x: &Tensor, t: &[f64], text: Option<&Tensor>) -> Result<Vec<Vec<f64>>>;
}

/// A model of one cluster: what a mixture has to know of its members.
pub trait ClusterExpert {
    /// Its cluster.
    fn cluster(&self) -> u16;
    /// What its raw output estimates.
    fn objective(&self) -> Objective;
    /// The noising path that it was trained on.
    fn schedule(&self) -> Schedule;
    /// Its velocity on the linear path; predicted clean samples are clamped to plus or minus `clamp`.
    fn velocity_field(&self, conversion: Conversion, clamp: f64) -> impl VelocityField;
}
