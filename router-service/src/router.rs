//! The router: a DiT with AdaLN-Zero blocks and a class token (paper Section 2.6 and 6.3), optionally text-conditioned.
//!
//! Without text it knows only the prior at `t = 1`, where the noise says nothing. The conditional form of Eq. 1 asks for
//! `p(k | x_t, t, c)`: with `text`, each text token goes through a small MLP, and the mean over the tokens is added to the
//! timestep embedding and to the class token.

use crate::Result;
use hdd_expert_runtime::{
    ClusterPosterior,
    network::{
        Attention, Mlp, PatchEmbed, TimestepEmbed, fill_normal, gate, linear, norm_modulate, position_embedding,
    },
    seeded,
    weights::{self, Named},
};
use hdd_protocol::{Charter, RouterRecipe};
use std::{collections::HashMap, path::Path};
use tch::{
    Device, Kind, Tensor,
    nn::{self, Init, Linear, Module},
};

/// Epsilon of the blocks' LayerNorm.
const EPSILON: f64 = 1e-6;

struct Block {
    attn: Attention,
    mlp: Mlp,
    modulation: Linear,
}

impl Block {
    /// `x (B, N, D)`, `c (B, D)`.
    fn forward(&self, x: &Tensor, c: &Tensor) -> Tensor {
        let m = self.modulation.forward(&c.silu()).unsqueeze(1).chunk(6, -1); // six of (B, 1, D)
        let x = gate(x, &m[2], &self.attn.forward(&norm_modulate(x, &m[0], &m[1], EPSILON)));
        gate(&x, &m[5], &self.mlp.forward(&norm_modulate(&x, &m[3], &m[4], EPSILON)))
    }
}

/// Predicts the cluster of a noisy latent.
pub struct Router {
    x_embedder: PatchEmbed,
    t_embedder: TimestepEmbed,
    cls_token: Tensor, // (1, 1, D)
    text_mlp: Option<(Linear, Linear)>,
    blocks: Vec<Block>,
    head: (Linear, nn::LayerNorm, Linear),
    position: Tensor, // (1, N, D)
    store: nn::VarStore,
}

impl Router {
    /// A freshly initialised router for latents `(C, H, H)` with `shape = [channels, size]`, `clusters` = K, and text
    /// tokens of `text_width` channels if the recipe says so.
    pub fn new(
        recipe: &RouterRecipe,
        shape: [u32; 2],
        text_width: u32,
        clusters: u16,
        seed: u64,
        device: Device,
    ) -> Self {
        seeded(seed, || Self::draw(recipe, shape, text_width, clusters, device))
    }

    /// A router from libtorch's generator as it stands.
    fn draw(recipe: &RouterRecipe, shape: [u32; 2], text_width: u32, clusters: u16, device: Device) -> Self {
        let store = nn::VarStore::new(device);
        let vs = &store.root();
        let [width, depth, heads, patch, channels, size] =
            [recipe.width, recipe.depth, recipe.heads, recipe.patch, shape[0], shape[1]].map(i64::from);
        let zero = |path, input, output| {
            let mut layer = linear(path, input, output);
            fill_normal(&mut layer, 0.0);
            layer
        };
        let block = |i| {
            let vs = vs / "blocks" / i;
            Block {
                attn: Attention::new(&(&vs / "attn"), width, heads),
                mlp: Mlp::new(&(&vs / "mlp"), width),
                modulation: zero(&vs / "adaLN_modulation" / 1, width, 6 * width), // AdaLN-Zero
            }
        };
        let head = vs / "head";
        Self {
            x_embedder: PatchEmbed::new(&(vs / "x_embedder"), channels, width, patch),
            t_embedder: TimestepEmbed::new(&(vs / "t_embedder"), width),
            cls_token: vs.var("cls_token", &[1, 1, width], Init::Randn { mean: 0.0, stdev: 0.02 }),
            text_mlp: recipe.text.then(|| {
                let vs = vs / "text_mlp";
                (linear(&vs / 0, i64::from(text_width), 4 * width), linear(&vs / 2, 4 * width, width))
            }),
            blocks: (0..depth).map(block).collect(),
            head: (
                linear(&head / 0, width, width),
                nn::layer_norm(&head / 2, vec![width], nn::LayerNormConfig::default()),
                linear(&head / 4, width, i64::from(clusters)),
            ),
            position: position_embedding(width, size / patch).to_device(device),
            store,
        }
    }

    /// The router that `charter` asks for.
    pub fn of_charter(charter: &Charter, seed: u64, device: Device) -> Self {
        let shape = [charter.latent.channels, charter.latent.size];
        Self::new(&charter.router, shape, charter.text.width, charter.clusters(), seed, device)
    }

    /// Replaces the weights by a file's.
    ///
    /// # Errors
    /// As [`weights::read_into`].
    pub fn read(&mut self, path: &Path) -> Result<()> {
        weights::read_into(path, &self.parameters())?;
        self.freeze();
        Ok(())
    }

    /// Ends training: no gradients from now on.
    pub fn freeze(&mut self) {
        self.store.freeze();
    }

    /// Writes the weights to a file.
    ///
    /// # Errors
    /// As [`weights::write`].
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(weights::write(path, &self.parameters(), HashMap::from([("format".into(), "pt".into())]))?)
    }

    /// Where its weights lie.
    pub fn device(&self) -> Device {
        self.store.device()
    }

    /// Named parameters, in the order of their names.
    pub fn parameters(&self) -> Named {
        self.store.variables().into_iter().collect()
    }

    /// Logits `(B, K)` of noisy latents `x (B, C, H, W)` on the linear path at times `t` in [0, 1], one an image.
    /// `text (B, L, W)` is looked at by a text-conditioned router only; absent, it counts as zero.
    pub fn logits(&self, x: &Tensor, t: &[f64], text: Option<&Tensor>) -> Tensor {
        let batch = x.size()[0];
        let times: Vec<f32> = t.iter().map(|&t| 999.0 * t as f32).collect();
        let mut c = self.t_embedder.forward(&Tensor::from_slice(&times).to_device(x.device())); // (B, D)
        let mut class = self.cls_token.expand([batch, -1, -1], false); // (B, 1, D)
        if let (Some((first, second)), Some(text)) = (&self.text_mlp, text) {
            let words = second.forward(&first.forward(text).gelu("tanh")); // (B, L, D)
            let meaning = mean_of_used(&words, text); // (B, D)
            class = &class + meaning.unsqueeze(1);
            c = &c + meaning;
        }
        let tokens = self.x_embedder.forward(x) + &self.position; // (B, N, D)
        let mut h = Tensor::cat(&[class, tokens], 1); // (B, 1 + N, D)
        for block in &self.blocks {
            h = block.forward(&h, &c);
        }
        let (first, norm, last) = &self.head;
        let h = first.forward(&h.select(1, 0)).gelu("tanh"); // (B, D)
        last.forward(&norm.forward(&h).gelu("tanh"))
    }
}

impl Router {
    /// Probabilities of the clusters, one row an image, whether or not they are numbers.
    pub(crate) fn probabilities(
        &self,
        x: &Tensor,
        t: &[f64],
        text: Option<&Tensor>,
    ) -> hdd_expert_runtime::Result<Vec<Vec<f64>>> {
        let p = self.logits(x, t, text).softmax(-1, Kind::Double).to_device(Device::Cpu);
        Ok(Vec::<Vec<f64>>::try_from(&p)?)
    }
}

impl ClusterPosterior for Router {
    fn posterior(&self, x: &Tensor, t: &[f64], text: Option<&Tensor>) -> hdd_expert_runtime::Result<Vec<Vec<f64>>> {
        let rows = self.probabilities(x, t, text)?;
        match t.iter().zip(&rows).find(|(_, row)| row.iter().any(|p| !p.is_finite())) {
            None => Ok(rows),
            Some((t, _)) => Err(hdd_expert_runtime::Error::Data {
                what: "the router".into(),
                why: format!("its probabilities at t = {t} are no numbers; use another router"),
            }),
        }
    }
}

/// Mean of `words (B, L, D)` over the places where `text (B, L, W)` is not all zero; zero where it is everywhere: `(B, D)`.
fn mean_of_used(words: &Tensor, text: &Tensor) -> Tensor {
    let used = text.abs().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).gt(0.0).to_kind(words.kind()); // (B, L, 1)
    let count = used.sum_dim_intlist([1i64].as_slice(), false, words.kind()).clamp_min(1.0); // (B, 1)
    (words * used).sum_dim_intlist([1i64].as_slice(), false, words.kind()) / count
}
