use crate::Result;
use hdd_protocol::Picture;
use tch::{Device, Kind, Tensor};

/// Square RGB images of one size with their captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// `N x 3 x size x size` bytes: image by image, channel by channel, row by row.
    pub pixels: Vec<u8>,
    /// Side in pixels.
    pub size: u32,
    /// What each image shows, `N`.
    pub captions: Vec<String>,
    /// What each image is called, `N`; images of one name are near-twins and are held out together.
    pub names: Vec<String>,
}

impl Images {
    /// No images, of side `size`.
    pub fn empty(size: u32) -> Self {
        Self { pixels: Vec::new(), size, captions: Vec::new(), names: Vec::new() }
    }

    /// Number of images, N.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The planar bytes of image `index`, which must be below [`len`](Self::len).
    pub fn planes(&self, index: usize) -> &[u8] {
        let bytes = 3 * (self.size * self.size) as usize;
        &self.pixels[index * bytes..][..bytes]
    }

    /// The images at `indices`, each below [`len`](Self::len), in that order.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            pixels: indices.iter().flat_map(|&i| self.planes(i)).copied().collect(),
            size: self.size,
            captions: indices.iter().map(|&i| self.captions[i].clone()).collect(),
            names: indices.iter().map(|&i| self.names[i].clone()).collect(),
        }
    }

    /// All images on `device`: `(N, 3, size, size)`, float, 0 as -1 and 255 as 1.
    ///
    /// # Errors
    /// [`crate::Error::Torch`], most likely for want of memory.
    pub fn tensor(&self, device: Device) -> Result<Tensor> {
        let side = i64::from(self.size);
        let bytes = Tensor::f_from_data_size(&self.pixels, &[self.len() as i64, 3, side, side], Kind::Uint8)?;
        Ok(bytes.f_to_device(device)?.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)?)
    }

    /// Image `index`, below [`len`](Self::len), as it travels and is written to files.
    pub fn picture(&self, index: usize) -> Picture {
        let planes = self.planes(index);
        let area = planes.len() / 3;
        let rgb = (0..area).flat_map(|p| [planes[p], planes[area + p], planes[2 * area + p]]).collect();
        Picture { width: self.size, height: self.size, rgb }
    }
}
