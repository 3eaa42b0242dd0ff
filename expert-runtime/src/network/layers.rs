//! Layers of DiT (Peebles and Xie, 2023). Parameter names are those of its published checkpoints.

use crate::fused;
use std::borrow::Borrow;
use tch::{
    Device, Kind, Tensor,
    nn::{self, Init, Linear, Module, Path},
};

/// Width of the sinusoidal timestep embedding.
const FREQUENCIES: i64 = 256;

/// A linear layer, Xavier uniform with zero bias.
pub fn linear<'a>(vs: impl Borrow<Path<'a>>, input: i64, output: i64) -> Linear {
    let bound = (6.0 / (input + output) as f64).sqrt();
    let ws_init = Init::Uniform { lo: -bound, up: bound };
    nn::linear(vs, input, output, nn::LinearConfig { ws_init, bs_init: Some(Init::Const(0.0)), bias: true })
}

/// Redraws a layer's weights as N(0, std) and zeroes its bias.
pub fn fill_normal(layer: &mut Linear, std: f64) {
    let _guard = tch::no_grad_guard();
    let _ = if std == 0.0 { layer.ws.zero_() } else { layer.ws.normal_(0.0, std) };
    if let Some(bias) = &mut layer.bs {
        let _ = bias.zero_();
    }
}

/// LayerNorm without affine, `(B, N, D) -> (B, N, D)`.
pub fn norm(x: &Tensor, epsilon: f64) -> Tensor {
    let width = x.size().last().copied().unwrap_or(1);
    x.layer_norm([width], None::<Tensor>, None::<Tensor>, epsilon, true)
}

/// `norm(x) (1 + scale) + shift`, `(B, N, D)` with `(B, 1, D)`.
pub fn norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor, epsilon: f64) -> Tensor {
    fused::norm_modulate(x, shift, scale, epsilon).unwrap_or_else(|| shift.addcmul(&norm(x, epsilon), &(scale + 1.0)))
}

/// The tanh GELU.
pub fn gelu(x: &Tensor) -> Tensor {
    fused::gelu(x).unwrap_or_else(|| x.gelu("tanh"))
}

/// `x + gate y`, `(B, N, D)` with `(B, 1, D)`.
pub fn gate(x: &Tensor, gate: &Tensor, y: &Tensor) -> Tensor {
    x.addcmul(gate, y)
}

/// Patches to tokens: DiT's strided convolution, computed as one matrix product.
#[derive(Debug)]
pub struct PatchEmbed {
    weight: Tensor, // (D, C, p, p)
    bias: Tensor,   // (D)
    patch: i64,
}

impl PatchEmbed {
    /// Xavier uniform over the flattened kernel, zero bias. Parameters `proj.weight`, `proj.bias` under `vs`.
    pub fn new(vs: &Path<'_>, channels: i64, width: i64, patch: i64) -> Self {
        let bound = (6.0 / (channels * patch * patch + width) as f64).sqrt();
        let vs = vs / "proj";
        Self {
            weight: vs.var("weight", &[width, channels, patch, patch], Init::Uniform { lo: -bound, up: bound }),
            bias: vs.var("bias", &[width], Init::Const(0.0)),
            patch,
        }
    }

    /// `(B, C, H, W) -> (B, N, D)`, tokens row by row.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (b, c, h, w) = (x.size()[0], x.size()[1], x.size()[2] / self.patch, x.size()[3] / self.patch);
        let patches = x
            .reshape([b, c, h, self.patch, w, self.patch])
            .permute([0, 2, 4, 1, 3, 5]) // (B, h, w, C, p, p)
            .reshape([b, h * w, c * self.patch * self.patch]);
        patches.linear(&self.weight.flatten(1, 3), Some(&self.bias)) // (B, N, D)
    }
}

/// Inverse of patching: `(B, N, p p C) -> (B, C, H, W)`.
pub fn unpatchify(x: &Tensor, patch: i64, channels: i64) -> Tensor {
    let (b, n) = (x.size()[0], x.size()[1]);
    let side = (n as f64).sqrt().round() as i64;
    x.reshape([b, side, side, patch, patch, channels])
        .permute([0, 5, 1, 3, 2, 4]) // (B, C, h, p, w, p)
        .reshape([b, channels, side * patch, side * patch])
}

/// Fixed 2-D sin-cos table, `(1, N, D)`: first half of the channels from the column, second half from the row.
pub fn position_embedding(width: i64, side: i64) -> Tensor {
    let at = |position: i64| {
        let quarter = width / 4;
        let angle = move |i: i64| position as f64 / 10000f64.powf(i as f64 / quarter as f64);
        (0..quarter).map(move |i| angle(i).sin()).chain((0..quarter).map(move |i| angle(i).cos()))
    };
    let table: Vec<f64> =
        (0..side).flat_map(|row| (0..side).flat_map(move |column| at(column).chain(at(row)))).collect();
    Tensor::from_slice(&table).reshape([1, side * side, width]).to_kind(Kind::Float)
}

/// Sinusoid of 256 channels, [cos, sin], and a two-layer MLP.
#[derive(Debug)]
pub struct TimestepEmbed {
    first: Linear,
    second: Linear,
    frequencies: Tensor, // (128)
}

impl TimestepEmbed {
    /// Weights N(0, 0.02). Parameters `mlp.0`, `mlp.2` under `vs`.
    pub fn new(vs: &Path<'_>, width: i64) -> Self {
        let mut first = linear(vs / "mlp" / 0, FREQUENCIES, width);
        let mut second = linear(vs / "mlp" / 2, width, width);
        fill_normal(&mut first, 0.02);
        fill_normal(&mut second, 0.02);
        let half = FREQUENCIES / 2;
        let steps = Tensor::arange(half, (Kind::Float, Device::Cpu));
        let frequencies = (steps * -(10000f64.ln()) / half as f64).exp().to_device(vs.device());
        Self { first, second, frequencies }
    }

    /// Network times `(B) -> (B, D)`.
    pub fn forward(&self, times: &Tensor) -> Tensor {
        let angles = times.unsqueeze(1) * &self.frequencies; // (B, 128)
        let sinusoid = Tensor::cat(&[angles.cos(), angles.sin()], 1).to_kind(self.first.ws.kind());
        self.second.forward(&self.first.forward(&sinusoid).silu())
    }
}

/// Multi-head self-attention.
#[derive(Debug)]
pub struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: i64,
}

impl Attention {
    /// Parameters `qkv`, `proj` under `vs`.
    pub fn new(vs: &Path<'_>, width: i64, heads: i64) -> Self {
        Self { qkv: linear(vs / "qkv", width, 3 * width), proj: linear(vs / "proj", width, width), heads }
    }

    /// `(B, N, D) -> (B, N, D)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.proj.forward(&attention(&self.qkv.forward(x), None, self.heads))
    }
}

/// Attention of image tokens to text tokens.
#[derive(Debug)]
pub struct CrossAttention {
    q_linear: Linear,
    kv_linear: Linear,
    proj: Linear,
    heads: i64,
}

impl CrossAttention {
    /// Output zero. Parameters `q_linear`, `kv_linear`, `proj` under `vs`.
    pub fn new(vs: &Path<'_>, width: i64, heads: i64) -> Self {
        let mut proj = linear(vs / "proj", width, width);
        fill_normal(&mut proj, 0.0);
        Self {
            q_linear: linear(vs / "q_linear", width, width),
            kv_linear: linear(vs / "kv_linear", width, 2 * width),
            proj,
            heads,
        }
    }

    /// `(B, N, D)` and text `(B, L, D)` to `(B, N, D)`.
    pub fn forward(&self, x: &Tensor, text: &Tensor) -> Tensor {
        let (q, kv) = (self.q_linear.forward(x), self.kv_linear.forward(text));
        self.proj.forward(&attention(&q, Some(&kv), self.heads))
    }
}

/// Softmax attention, `(B, N, D)`: of the queries, keys and values side by side in `q_rows (B, N, 3 D)`, or of the queries
/// `q_rows (B, N, D)` to the keys and values in `kv_rows (B, L, 2 D)`. Heads share D out in order.
pub fn attention(q_rows: &Tensor, kv_rows: Option<&Tensor>, heads: i64) -> Tensor {
    fused::attention(q_rows, kv_rows, heads).unwrap_or_else(|| {
        let parts = match kv_rows {
            None => q_rows.chunk(3, 2),
            Some(kv) => [q_rows.shallow_clone()].into_iter().chain(kv.chunk(2, 2)).collect(),
        };
        let split = |x: &Tensor| x.unflatten(2, [heads, -1]).transpose(1, 2); // (B, h, N, D/h)
        let (q, k, v) = (split(&parts[0]), split(&parts[1]), split(&parts[2]));
        Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, false, None, false)
            .transpose(1, 2)
            .flatten(2, 3)
    })
}

/// Two linear layers with the tanh GELU between, hidden width 4 D.
#[derive(Debug)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    /// Parameters `fc1`, `fc2` under `vs`.
    pub fn new(vs: &Path<'_>, width: i64) -> Self {
        Self { fc1: linear(vs / "fc1", width, 4 * width), fc2: linear(vs / "fc2", 4 * width, width) }
    }

    /// `(B, N, D) -> (B, N, D)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&gelu(&self.fc1.forward(x)))
    }
}
