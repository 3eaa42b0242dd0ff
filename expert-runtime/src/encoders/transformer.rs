//! What the encoders' transformers share: attention, feed-forward and the pre-norm block, with the names of their weights
//! given from outside.

use super::weights::Weights;
use crate::Result;
use serde::Deserialize;
use tch::{
    Tensor,
    nn::{Linear, Module},
};

/// A nonlinearity, by `transformers`' name.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Activation {
    /// `x sigmoid(1.702 x)`, OpenAI's.
    QuickGelu,
    /// With the error function.
    Gelu,
    /// With the hyperbolic tangent.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
            Self::Gelu => x.gelu("none"),
            Self::GeluNew => x.gelu("tanh"),
        }
    }
}

/// LayerNorm with scale and shift.
#[derive(Debug)]
pub(super) struct LayerNorm {
    affine: [Tensor; 2], // (D) each
    epsilon: f64,
}

impl LayerNorm {
    pub fn load(weights: &mut Weights, name: &str, width: i64, epsilon: f64) -> Result<Self> {
        Ok(Self { affine: weights.affine(name, width)?, epsilon })
    }

    /// `(..., D) -> (..., D)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let [scale, shift] = &self.affine;
        x.layer_norm(scale.size(), Some(scale), Some(shift), self.epsilon, true)
    }
}

/// Multi-head self-attention, queries, keys and values in one product.
#[derive(Debug)]
pub(super) struct Attention {
    qkv: Linear,
    out: Linear,
    heads: i64,
    causal: bool,
}

impl Attention {
    /// `names` are those of the projections to query, key, value and from the heads; `heads` must divide `width`.
    pub fn load(
        weights: &mut Weights,
        names: [&str; 4],
        width: i64,
        heads: i64,
        (bias, causal): (bool, bool),
    ) -> Result<Self> {
        let [q, k, v] = [names[0], names[1], names[2]].map(|name| weights.linear(name, width, width, bias));
        let parts = [q?, k?, v?];
        let ws = Tensor::f_cat(&parts.each_ref().map(|part| &part.ws), 0)?;
        let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bs.as_ref()).collect();
        let bs = if bias { Some(Tensor::f_cat(&biases, 0)?) } else { None };
        Ok(Self { qkv: Linear { ws, bs }, out: weights.linear(names[3], width, width, true)?, heads, causal })
    }

    /// `(B, N, D) -> (B, N, D)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (b, n, d) = (x.size()[0], x.size()[1], x.size()[2]);
        let qkv = self.qkv.forward(x).reshape([b, n, 3, self.heads, d / self.heads]).permute([2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.select(0, i)); // (B, h, N, D/h)
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, self.causal, None, false);
        self.out.forward(&y.transpose(1, 2).reshape([b, n, d]))
    }
}

/// The second half of a block.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// Two linear layers with a nonlinearity between.
    Plain(Linear, Activation, Linear),
    /// One layer to gate and value, one back (Shazeer, 2020).
    SwiGlu(Linear, Linear),
}

impl FeedForward {
    /// `(B, N, D) -> (B, N, D)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Plain(fc1, activation, fc2) => fc2.forward(&activation.apply(&fc1.forward(x))),
            Self::SwiGlu(inner, outer) => {
                let both = inner.forward(x).chunk(2, -1);
                outer.forward(&(both[0].silu() * &both[1]))
            }
        }
    }
}

/// Pre-norm block, each half optionally scaled by channel (LayerScale; Touvron et al., 2021) before it is added.
#[derive(Debug)]
pub(super) struct Block {
    pub norms: [LayerNorm; 2],
    pub attention: Attention,
    pub feed_forward: FeedForward,
    pub scales: Option<[Tensor; 2]>, // (D) each
}

impl Block {
    /// `(B, N, D) -> (B, N, D)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let add = |x: &Tensor, half: usize, y: Tensor| match &self.scales {
            Some(scales) => x.addcmul(&y, &scales[half]),
            None => x + y,
        };
        let x = add(x, 0, self.attention.forward(&self.norms[0].forward(x)));
        let y = self.feed_forward.forward(&self.norms[1].forward(&x));
        add(&x, 1, y)
    }
}
