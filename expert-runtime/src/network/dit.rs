//! The network of an expert: DiT with AdaLN-Single and cross-attention to text (paper Section 2.5, Eq. 14-19; PixArt-alpha).

use super::layers::{
    Attention, CrossAttention, Mlp, PatchEmbed, TimestepEmbed, fill_normal, gate, linear, norm, norm_modulate,
    position_embedding, unpatchify,
};
use hdd_protocol::Architecture;
use tch::{
    Kind, Tensor,
    nn::{Init, Linear, Module, Path},
};

#[derive(Debug)]
struct Block {
    attn: Attention,
    cross_attn: CrossAttention,
    mlp: Mlp,
    scale_shift_table: Tensor, // (6, D)
    cross_norm: bool,
    epsilon: f64,
}

impl Block {
    fn new(vs: &Path<'_>, a: &Architecture) -> Self {
        let (width, heads) = (i64::from(a.width), i64::from(a.heads));
        Self {
            attn: Attention::new(&(vs / "attn"), width, heads),
            cross_attn: CrossAttention::new(&(vs / "cross_attn"), width, heads),
            mlp: Mlp::new(&(vs / "mlp"), width),
            scale_shift_table: table(vs, 6, width),
            cross_norm: a.cross_norm,
            epsilon: f64::from(a.norm_epsilon),
        }
    }

    /// `(B, N, D) -> (B, N, D)`.
    fn forward(&self, x: &Tensor, shared: &Shared) -> Tensor {
        let m = (&shared.modulation + &self.scale_shift_table).unsqueeze(2).unbind(1); // six of (B, 1, D)
        let y = self.attn.forward(&norm_modulate(x, &m[0], &m[1], self.epsilon));
        let x = gate(x, &m[2], &y);
        let query = if self.cross_norm { norm(&x, self.epsilon) } else { x.shallow_clone() }; // Eq. 18
        let x = &x + self.cross_attn.forward(&query, &shared.text);
        let y = self.mlp.forward(&norm_modulate(&x, &m[3], &m[4], self.epsilon));
        gate(&x, &m[5], &y)
    }
}

/// What every block and the head are given beside the tokens.
#[derive(Debug)]
pub struct Shared {
    /// Timestep embedding, `(B, D)`.
    pub time: Tensor,
    /// Modulation common to the blocks, `(B, 6, D)`.
    pub modulation: Tensor,
    /// Projected text, `(B, L, D)`.
    pub text: Tensor,
}

fn table(vs: &Path<'_>, rows: i64, width: i64) -> Tensor {
    let stdev = (width as f64).powf(-0.5);
    vs.var("scale_shift_table", &[rows, width], Init::Randn { mean: 0.0, stdev })
}

/// Text-conditioned DiT with AdaLN-Single.
#[derive(Debug)]
pub struct Dit {
    x_embedder: PatchEmbed,
    t_embedder: TimestepEmbed,
    t_block: Linear,
    text_proj: Linear,
    null_embedding: Tensor, // (L, W)
    blocks: Vec<Block>,
    final_table: Tensor, // (2, D)
    final_linear: Linear,
    position: Tensor, // (1, N, D)
    architecture: Architecture,
}

impl Dit {
    /// A network of shape `a`, drawn from libtorch's generator as PixArt-alpha's: timestep, modulation and text layers N(0, 0.02),
    /// tables N(0, 1 / D), cross-attention's output and the final layer zero, all other layers Xavier uniform.
    ///
    /// `a` must have passed [`Architecture::check`].
    pub fn new(vs: &Path<'_>, a: &Architecture) -> Self {
        let [width, depth, patch, channels, text_width, text_length] =
            [a.width, a.depth, a.patch, a.channels, a.text_width, a.text_length].map(i64::from);
        let t_block = {
            let mut layer = linear(vs / "t_block" / 1, width, 6 * width);
            fill_normal(&mut layer, 0.02);
            layer
        };
        let text_proj = {
            let mut layer = linear(vs / "text_proj", text_width, width);
            fill_normal(&mut layer, 0.02);
            layer
        };
        let last = vs / "final_layer";
        let final_linear = {
            let mut layer = linear(&last / "linear", width, patch * patch * channels);
            fill_normal(&mut layer, 0.0);
            layer
        };
        let stdev = (text_width as f64).powf(-0.5);
        Self {
            x_embedder: PatchEmbed::new(&(vs / "x_embedder"), channels, width, patch),
            t_embedder: TimestepEmbed::new(&(vs / "t_embedder"), width),
            t_block,
            text_proj,
            null_embedding: vs.var("null_embedding", &[text_length, text_width], Init::Randn { mean: 0.0, stdev }),
            blocks: (0..depth).map(|i| Block::new(&(vs / "blocks" / i), a)).collect(),
            final_table: table(&last, 2, width),
            final_linear,
            position: position_embedding(width, i64::from(a.size / a.patch)).to_device(vs.device()),
            architecture: a.clone(),
        }
    }

    /// Sets the shared modulation's projection to zero.
    pub fn zero_modulation(&mut self) {
        fill_normal(&mut self.t_block, 0.0);
    }

    /// The shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The learned null text, `(B, L, W)`.
    pub fn null_text(&self, batch: i64) -> Tensor {
        self.null_embedding.unsqueeze(0).expand([batch, -1, -1], false)
    }

    /// The raw output at `x (B, C, H, W)`, times `t` in [0, 1] (one an image) and `text (B, L, W)`; shaped as `x`.
    pub fn forward(&self, x: &Tensor, t: &[f64], text: &Tensor) -> Tensor {
        let (mut tokens, shared) = self.embed(x, t, text);
        for index in 0..self.depth() {
            tokens = self.block(index, &tokens, &shared);
        }
        self.head(&tokens, &shared)
    }

    /// First part of [`forward`](Self::forward): the tokens, `(B, N, D)`, and what all blocks share.
    pub fn embed(&self, x: &Tensor, t: &[f64], text: &Tensor) -> (Tensor, Shared) {
        let times = self.network_times(t).to_device(x.device()); // (B)
        let tokens = self.x_embedder.forward(x) + &self.position;
        let time = self.t_embedder.forward(&times);
        let modulation = self.t_block.forward(&time.silu()).reshape([-1, 6, i64::from(self.architecture.width)]);
        (tokens, Shared { modulation, text: self.text_proj.forward(text), time })
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Middle part: block `index`, from 0, `(B, N, D) -> (B, N, D)`.
    pub fn block(&self, index: usize, tokens: &Tensor, shared: &Shared) -> Tensor {
        self.blocks[index].forward(tokens, shared)
    }

    /// Last part: `(B, N, D) -> (B, C, H, W)`.
    pub fn head(&self, tokens: &Tensor, shared: &Shared) -> Tensor {
        let a = &self.architecture;
        let m = (shared.time.unsqueeze(1) + &self.final_table).unsqueeze(2).unbind(1); // two of (B, 1, D)
        let h = norm_modulate(tokens, &m[0], &m[1], f64::from(a.norm_epsilon));
        unpatchify(&self.final_linear.forward(&h), i64::from(a.patch), i64::from(a.channels))
    }

    /// In float32, as PyTorch's references compute `time_scale * t`.
    fn network_times(&self, t: &[f64]) -> Tensor {
        let a = &self.architecture;
        let scaled = t.iter().map(|&t| {
            let time = a.time_scale * t as f32;
            if a.round_time { time.round_ties_even() } else { time }
        });
        Tensor::from_slice(&scaled.collect::<Vec<f32>>()).to_kind(Kind::Float)
    }
}
