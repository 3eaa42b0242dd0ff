use crate::{
    Architecture, Digest, PublicKey, Recipe, Result, RouterRecipe, SampleLimits, SignedPayload, error::ensure,
};
use serde::{Deserialize, Serialize};

/// How images become the tensors that experts see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Codec {
    /// Pixels themselves, scaled to [-1, 1].
    Pixels,
    /// Stable Diffusion's autoencoder with these weights.
    StableDiffusionVae {
        /// Digest of the weights.
        weights: Digest,
        /// Factor on the latents, 0.18215.
        scale: f32,
    },
}

/// The space that all experts of a network work in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Codec between images and latents.
    pub codec: Codec,
    /// Channels, `C`.
    pub channels: u32,
    /// Side of the square, `H = W`.
    pub size: u32,
    /// Predicted clean samples are clamped to plus or minus this (20 for VAE latents, 5 for pixels in the paper; a
    /// charter may state the true range).
    pub clamp: f32,
}

/// Turns a prompt into text tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TextEncoder {
    /// No weights: each word's vector is drawn from the word's hash.
    HashedWords,
    /// CLIP's text model with these weights.
    ClipText {
        /// Digest of the weights.
        weights: Digest,
    },
}

/// Text conditioning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The encoder.
    pub encoder: TextEncoder,
    /// Channels of a text token.
    pub width: u32,
    /// Text tokens, `L`.
    pub length: u32,
}

/// Turns an image into the vector that decides its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FeatureExtractor {
    /// Distance from white of the mean colour in each cell of a `grid` x `grid` raster.
    CellMeans {
        /// Cells a side.
        grid: u32,
    },
    /// DINOv2's class token with these weights.
    Dinov2 {
        /// Digest of the weights.
        weights: Digest,
    },
}

/// What the founder allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest weights file, bytes.
    pub weights_bytes: u64,
    /// Largest number of trainable parameters of an expert.
    pub parameters: u64,
    /// Longest life of a manifest, seconds.
    pub manifest_seconds: u64,
    /// Bounds of a sample request.
    pub sample: SampleLimits,
}

/// The document that defines a network: what independent people must share for their experts to fit together.
///
/// Its digest is the network's name. The clock is fixed: `t = 0` data, `t = 1` noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charter {
    /// A short name for people.
    pub name: String,
    /// The key that signs.
    pub founder: PublicKey,
    /// When it was issued, Unix seconds.
    pub issued_at: u64,
    /// The charter that this one replaces.
    pub successor_of: Option<Digest>,
    /// Latent space.
    pub latent: Latent,
    /// Text conditioning.
    pub text: Text,
    /// Features that clusters are made of.
    pub extractor: FeatureExtractor,
    /// Unit vectors, one a cluster; an image belongs to the one with the largest dot product.
    pub centroids: Vec<Vec<f32>>,
    /// Bounds.
    pub limits: Limits,
    /// Shape of an expert unless its contributor chooses another.
    pub architecture: Architecture,
    /// Training of an expert unless its contributor chooses otherwise.
    pub recipe: Recipe,
    /// The router and its training.
    pub router: RouterRecipe,
    /// Digest of a public held-out set, if there is one.
    pub held_out: Option<Digest>,
    /// SPDX expression of the licence that contributed weights carry.
    pub licence: String,
    /// What a contributor states about the data.
    pub data_terms: String,
}

impl Charter {
    /// Number of clusters, K.
    pub fn clusters(&self) -> u16 {
        self.centroids.len() as u16 // `check` bounds it
    }
}

impl SignedPayload for Charter {
    const DOMAIN: &'static str = "hdd charter";
    const NAME: &'static str = "charter";
    const LIMIT: usize = 4 << 20;

    fn author(&self) -> PublicKey {
        self.founder
    }

    fn check(&self) -> Result<()> {
        let what = Self::NAME;
        ensure(is_name(&self.name), what, "name", || NAME_RULE.into())?;
        ensure((1..=1024).contains(&self.centroids.len()), what, "centroids", || {
            format!("number {}, must be 1 to 1,024", self.centroids.len())
        })?;
        let dimension = self.centroids[0].len();
        let unit = |c: &Vec<f32>| c.len() == dimension && (c.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-3;
        ensure((1..=4096).contains(&dimension) && self.centroids.iter().all(unit), what, "centroids", || {
            "must be unit vectors of one dimension, 1 to 4,096".into()
        })?;
        ensure(self.latent.clamp > 0.0 && self.latent.clamp <= 1e3, what, "clamp", || "must be 0 to 1,000".into())?;
        let fits = self.architecture.channels == self.latent.channels
            && self.architecture.size == self.latent.size
            && self.architecture.text_width == self.text.width
            && self.architecture.text_length == self.text.length;
        ensure(fits, what, "architecture", || "does not fit the latent space and the text encoder".into())?;
        self.architecture.check()?;
        self.recipe.check()?;
        self.router.check()?;
        ensure(self.latent.size.is_multiple_of(self.router.patch), what, "router", || {
            format!("has patch {}, which does not divide the latent size {}", self.router.patch, self.latent.size)
        })?;
        self.limits.sample.check()?;
        ensure((1..=100).contains(&self.licence.len()), what, "licence", || "must be an SPDX expression".into())?;
        ensure(self.data_terms.len() <= 4096, what, "data_terms", || "are longer than 4,096 bytes".into())
    }
}

pub(crate) const NAME_RULE: &str = "must be 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not beginning with '.'";

/// Checks a name of an expert or charter: 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not beginning with '.'.
///
/// # Errors
/// [`crate::Error::OutOfRange`].
pub fn check_name(name: &str) -> Result<()> {
    ensure(is_name(name), "name", "characters", || NAME_RULE.into())
}

/// Names appear in tables and file names: no spaces, no separators, no control characters.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with('.')
}
