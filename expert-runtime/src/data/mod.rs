//! From images and captions to what an expert is trained on.
//!
//! [`emoji32`] and [`read_folder`] make [`Images`]; [`features()`] turns each image into the unit vector that decides its
//! cluster; [`kmeans()`] finds the clusters that a founder writes into a charter and [`assign`] puts anyone's images into
//! them; [`subset`] picks what one contributor trains on, and [`encode`] makes text tokens of captions and prompts.
//!
//! All of it gives the same result on every machine, so that independent people agree on clusters and words. Pixels,
//! captions and file names stay on this machine: nothing here is part of any message.

mod charter;
mod emoji;
mod features;
mod folder;
mod images;
mod kmeans;
mod raster;
mod split;
mod text;

pub use charter::emoji_charter;
pub use emoji::emoji32;
pub use features::features;
pub(crate) use folder::read_bounded;
pub use folder::{read_files, read_folder};
pub use images::Images;
pub use kmeans::{Clustering, assign, kmeans};
pub use split::{held_out, subset};
pub use text::encode;

use crate::Error;

fn broken(what: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Data { what: what.into(), why: why.into() }
}
