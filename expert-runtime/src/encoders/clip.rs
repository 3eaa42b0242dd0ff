//! CLIP's text tower (Radford et al., 2021): token ids to one vector a token. The paper's experts attend to its
//! `last_hidden_state`, 77 tokens of 768 numbers, padding included.

use super::{
    folder::{config, unusable},
    transformer::{Activation, Attention, Block, FeedForward, LayerNorm},
    weights::Weights,
};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// `transformers`' CLIPTextConfig with its defaults, which published files leave out.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    max_position_embeddings: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
    eos_token_id: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

/// Configurations written before this id was right: the end is then the highest id of a text.
const LEGACY_END: i64 = 2;

/// What CLIP makes of a batch of texts.
#[derive(Debug)]
pub struct TextStates {
    /// A vector for each token, after the last normalisation, `(B, L, D)`.
    pub last_hidden_state: Tensor,
    /// That of the end token, `(B, D)`.
    pub pooled: Tensor,
    /// The pooled vector in the space shared with images, `(B, P)`, where the folder holds that projection.
    pub projected: Option<Tensor>,
}

/// CLIP's text tower.
#[derive(Debug)]
pub struct ClipText {
    tokens: Tensor,    // (V, D)
    positions: Tensor, // (L, D)
    blocks: Vec<Block>,
    norm: LayerNorm,
    projection: Option<Tensor>, // (P, D)
    end: i64,
}

impl ClipText {
    /// Reads the text tower of a CLIPTextModel, CLIPTextModelWithProjection or CLIPModel folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] for a configuration that cannot be; [`Error::Weights`] for weights that are not of it.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            text_config: Option<Config>,
        }
        let c = match config::<Whole>(folder)?.text_config {
            Some(text) => text,
            None => config::<Config>(folder)?,
        };
        let (width, heads) = (c.hidden_size, c.num_attention_heads);
        if width < 1 || heads < 1 || width % heads != 0 || c.layer_norm_eps <= 0.0 {
            return Err(unusable(
                folder,
                "its config.json has heads that do not divide the width, or no positive layer_norm_eps",
            ));
        }
        let mut w = Weights::open(folder, &["text_model."], device, kind)?;
        let tokens = w.tensor("embeddings.token_embedding.weight", &[c.vocab_size, width])?;
        let positions = w.tensor("embeddings.position_embedding.weight", &[c.max_position_embeddings, width])?;
        let blocks = (0..c.num_hidden_layers)
            .map(|layer| {
                let at = |part: &str| format!("encoder.layers.{layer}.{part}");
                let [q, k, v, out] = ["q_proj", "k_proj", "v_proj", "out_proj"].map(|p| at(&format!("self_attn.{p}")));
                let norms =
                    ["layer_norm1", "layer_norm2"].map(|n| LayerNorm::load(&mut w, &at(n), width, c.layer_norm_eps));
                let [first, second] = norms;
                Ok(Block {
                    norms: [first?, second?],
                    attention: Attention::load(&mut w, [&q, &k, &v, &out], width, heads, (true, true))?,
                    feed_forward: FeedForward::Plain(
                        w.linear(&at("mlp.fc1"), width, c.intermediate_size, true)?,
                        c.hidden_act,
                        w.linear(&at("mlp.fc2"), c.intermediate_size, width, true)?,
                    ),
                    scales: None,
                })
            })
            .collect::<Result<_>>()?;
        let norm = LayerNorm::load(&mut w, "final_layer_norm", width, c.layer_norm_eps)?;
        let projection = match w.shape("text_projection.weight").as_deref() {
            Some(&[output, _]) => Some(w.tensor("text_projection.weight", &[output, width])?),
            _ => None,
        };
        w.finish(&["vision_model.", "visual_projection.", "logit_scale", "embeddings.position_ids"])?;
        Ok(Self { tokens, positions, blocks, norm, projection, end: c.eos_token_id })
    }

    /// Number of token ids, V.
    pub fn vocabulary(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Most tokens of a text, start and end included.
    pub fn length(&self) -> i64 {
        self.positions.size()[0]
    }

    /// Width of a token's vector, D.
    pub fn width(&self) -> i64 {
        self.positions.size()[1]
    }

    /// Encodes token ids `(B, L)`, int64, as [`Tokenizer::batch`](super::Tokenizer::batch) makes them.
    ///
    /// # Errors
    /// [`Error::Data`] for another shape or kind, more tokens than [`length`](Self::length), or an id that is none.
    pub fn encode(&self, ids: &Tensor) -> Result<TextStates> {
        let bad = |why: String| Error::Data { what: "token ids".into(), why };
        let (batch, length) = match ids.size()[..] {
            [batch, length] if batch > 0 && length > 0 => (batch, length),
            _ => return Err(bad(format!("have shape {:?}, expected (B, L)", ids.size()))),
        };
        if ids.kind() != Kind::Int64 || length > self.length() {
            return Err(bad(format!("are {length} of {:?}, expected at most {} of Int64", ids.kind(), self.length())));
        }
        let (low, high) = (ids.min().int64_value(&[]), ids.max().int64_value(&[]));
        if low < 0 || high >= self.vocabulary() {
            return Err(bad(format!("range from {low} to {high}, the model knows 0 to {}", self.vocabulary() - 1)));
        }
        let ids = ids.to_device(self.tokens.device());
        let x = Tensor::embedding(&self.tokens, &ids, -1, false, false) + self.positions.narrow(0, 0, length); // (B, L, D)
        let last_hidden_state = self.norm.forward(&self.blocks.iter().fold(x, |x, block| block.forward(&x)));
        let score = if self.end == LEGACY_END { ids } else { ids.eq(self.end).to_kind(Kind::Int) };
        let end = score.argmax(1, false).reshape([batch, 1, 1]).expand([batch, 1, self.width()], false);
        let pooled = last_hidden_state.gather(1, &end, false).squeeze_dim(1); // (B, D)
        let projected = self.projection.as_ref().map(|p| pooled.linear(p, None::<Tensor>));
        Ok(TextStates { last_hidden_state, pooled, projected })
    }
}
