//! From AdaLN-Zero, a modulation matrix a block, to AdaLN-Single, one matrix for all blocks and a table a block.
//!
//! Eq. 20 does not say where DiT's per-block matrices go. With the class embedding averaged, block `l` of DiT is modulated
//! by `m_l(t) = M_l silu(e(t) + y) + b_l`, here by `A silu(e(t)) + a + T_l`. The tables make the two equal at [`ANCHOR`]
//! (PixArt-alpha's idea); among the matrices that do, `A` fits the other times best, which needs the mean of the blocks
//! only, and lies nearest to the mean of the `M_l` where the times leave it free.

use crate::{Result, network::TimestepEmbed};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// DiT's times run from 0 to this minus one.
pub const TIMES: i64 = 1000;
/// The time at which the modulation is DiT's own, to rounding.
pub const ANCHOR: i64 = 500;
/// Directions weaker than this, against the strongest, are left out of the fit: float32 weights could not carry them.
const CUTOFF: f64 = 1e-6;
/// Least gain of a channel of the final layer: a smaller one would ask for a table that training can hardly move.
const LEAST_GAIN: f64 = 0.125;

/// What the fit leaves: the difference of the modulations as a share of the original's, both root mean square.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Residual {
    /// Over all times and blocks.
    pub overall: f64,
    /// At single times, over all blocks.
    pub at: Vec<(i64, f64)>,
}

/// The time embedding `e(t)` at each of DiT's times, `(T, D)`, in float64.
pub fn embeddings(embed: &TimestepEmbed) -> Tensor {
    embed.forward(&Tensor::arange(TIMES, (Kind::Float, tch::Device::Cpu))).to_kind(Kind::Double)
}

/// The shared layer and the tables.
pub struct SharedModulation {
    /// `(6 D, D)`.
    pub weight: Tensor,
    /// `(6 D)`.
    pub bias: Tensor,
    /// `(6, D)` a block.
    pub tables: Vec<Tensor>,
    /// What is left.
    pub residual: Residual,
}

/// Fits the shared modulation to `layers`, the weight `(6 D, D)` and bias `(6 D)` of each block; `e (T, D)` and the mean class
/// embedding `y (D)` in float64.
///
/// # Errors
/// What libtorch refuses.
pub fn share(e: &Tensor, y: &Tensor, layers: &[(Tensor, Tensor)]) -> Result<SharedModulation> {
    let width = y.size()[0];
    let (own, original) = (e.silu(), (e + y).silu()); // (T, D)
    let apply = |weight: &Tensor, x: &Tensor| x.matmul(&weight.to_kind(Kind::Double).transpose(0, 1));
    let mean = |select: fn(&(Tensor, Tensor)) -> &Tensor| {
        layers.iter().fold(Tensor::from(0.0), |sum, layer| sum + select(layer).to_kind(Kind::Double))
            / layers.len() as f64
    };
    let (mean_weight, mean_bias) = (mean(|layer| &layer.0), mean(|layer| &layer.1));

    let since = |x: &Tensor| x - x.narrow(0, ANCHOR, 1);
    let wanted = apply(&mean_weight, &since(&original)) - apply(&mean_weight, &since(&own)); // (T, 6 D)
    let (change, ..) = since(&own).f_linalg_lstsq(&wanted, CUTOFF, "gelsd")?; // (D, 6 D)
    let weight = (mean_weight.shallow_clone() + change.transpose(0, 1)).to_kind(Kind::Float);
    let anchor = |x: &Tensor| x.narrow(0, ANCHOR, 1);
    let mean_anchor = apply(&mean_weight, &anchor(&original)) + &mean_bias; // (1, 6 D)
    let bias = (&mean_anchor - apply(&weight, &anchor(&own))).squeeze_dim(0).to_kind(Kind::Float);

    let shared = apply(&weight, &own) + bias.to_kind(Kind::Double); // (T, 6 D)
    let (mut tables, mut tally) = (Vec::with_capacity(layers.len()), Tally::default());
    for (block_weight, block_bias) in layers {
        let original = apply(block_weight, &original) + block_bias.to_kind(Kind::Double);
        let table = (anchor(&original) - anchor(&shared)).to_kind(Kind::Float);
        tally.add(&(&shared + &table), &original);
        tables.push(table.reshape([6, width]));
    }
    Ok(SharedModulation { weight, bias, tables, residual: tally.residual() })
}

/// The final layer with its modulation.
pub struct Final {
    /// `(out, D)`.
    pub weight: Tensor,
    /// `(2, D)`.
    pub table: Tensor,
    /// What is left.
    pub residual: Residual,
}

/// Folds DiT's final modulation, weight `(2 D, D)` and bias `(2 D)`, and its linear layer's `weight (out, D)` into a table and a
/// linear layer. Here shift and scale are `e(t) + T`, so each channel's columns take a gain `g`: `g (1 + e + T)` equals
/// `1 + scale` at [`ANCHOR`], `g (e + T')` equals `shift`, and `g` fits both over the other times.
pub fn fold_final(e: &Tensor, y: &Tensor, (modulation, bias): (&Tensor, &Tensor), weight: &Tensor) -> Final {
    let modulation = modulation.to_kind(Kind::Double);
    let m = (e + y).silu().matmul(&modulation.transpose(0, 1)) + bias.to_kind(Kind::Double); // (T, 2 D)
    let m = m.reshape([TIMES, 2, -1]); // shift, scale
    let since = |x: &Tensor| x - x.narrow(0, ANCHOR, 1);
    let sum = |x: Tensor| x.sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Double); // (D)
    let e = e.unsqueeze(1); // (T, 1, D)
    let change = since(&e);
    let gain = sum(since(&m) * &change) / (sum(change.square()) * 2.0).clamp_min(f64::MIN_POSITIVE);
    let least = gain.abs().clamp_min(LEAST_GAIN);
    let gain = least.where_self(&gain.ge(0.0), &least.neg()); // (D)
    let one = Tensor::from_slice(&[0.0, 1.0]).reshape([2, 1]);
    let table = ((m.select(0, ANCHOR) + &one) / &gain - &one - e.select(0, ANCHOR)).to_kind(Kind::Float); // (2, D)
    let own = (&one + &e + &table) * &gain; // (T, 2, D)
    let mut tally = Tally::default();
    tally.add(&own.flatten(1, 2), &(m + &one).flatten(1, 2));
    Final { weight: (weight.to_kind(Kind::Double) * gain).to_kind(Kind::Float), table, residual: tally.residual() }
}

/// Squares of differences and of originals, one a time.
#[derive(Default)]
struct Tally(Option<(Tensor, Tensor)>);

impl Tally {
    /// `got` and `wanted (T, n)`.
    fn add(&mut self, got: &Tensor, wanted: &Tensor) {
        let squares = |x: &Tensor| x.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let (difference, size) = (squares(&(got - wanted)), squares(wanted));
        self.0 = Some(match self.0.take() {
            Some((a, b)) => (a + difference, b + size),
            None => (difference, size),
        });
    }

    fn residual(&self) -> Residual {
        let Some((difference, size)) = &self.0 else { return Residual { overall: 0.0, at: Vec::new() } };
        let share = |a: &Tensor, b: &Tensor| (a.double_value(&[]) / b.double_value(&[]).max(f64::MIN_POSITIVE)).sqrt();
        let at = (0..TIMES).step_by(100).chain([TIMES - 1]);
        Residual {
            overall: share(&difference.sum(Kind::Double), &size.sum(Kind::Double)),
            at: at.map(|t| (t, share(&difference.get(t), &size.get(t)))).collect(),
        }
    }
}
