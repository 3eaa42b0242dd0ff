//! The transformer of an expert and the layers that it shares with the router.

mod dit;
mod layers;

pub use dit::{Dit, Shared};
pub use layers::{
    Attention, Mlp, PatchEmbed, TimestepEmbed, attention, fill_normal, gate, gelu, linear, norm_modulate,
    position_embedding, unpatchify,
};
