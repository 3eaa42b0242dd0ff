//! Decoding of PNG files and their way to a small square.

use std::io::Cursor;

/// Longest side of an image that is read, pixels.
const SIDE: u32 = 16_384;
/// Most pixels of an image that is read: 64 megapixels.
const AREA: u64 = 1 << 26;

/// An image as it was found, flattened on white.
pub(super) struct Raster {
    pub width: usize,
    pub height: usize,
    /// `3 * width * height` bytes, row by row.
    pub rgb: Vec<u8>,
}

impl Raster {
    /// Decodes a PNG file of any colour type and depth; of an animation, the default image.
    ///
    /// # Errors
    /// A clause that says what is wrong with the bytes.
    pub fn from_png(bytes: &[u8]) -> Result<Self, String> {
        let refuse = |e: png::DecodingError| format!("no readable PNG ({e})");
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
        let (width, height) = decoder.read_header_info().map_err(refuse)?.size();
        // Before anything is allocated: a few bytes can claim gigapixels.
        if width > SIDE || height > SIDE || u64::from(width) * u64::from(height) > AREA {
            return Err(format!("larger than {SIDE} pixels a side or {} megapixels", AREA >> 20));
        }
        let mut reader = decoder.read_info().map_err(refuse)?;
        let mut buffer = vec![0; reader.output_buffer_size().unwrap_or_default()];
        let frame = reader.next_frame(&mut buffer).map_err(refuse)?;
        buffer.truncate(frame.buffer_size());
        let over_white = |c: u8, alpha: u8| {
            let alpha = u32::from(alpha);
            ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        let rgb = match frame.color_type {
            png::ColorType::Rgb => buffer,
            png::ColorType::Rgba => {
                buffer.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, a]| [r, g, b].map(|c| over_white(c, a))).collect()
            }
            png::ColorType::Grayscale => buffer.iter().flat_map(|&c| [c; 3]).collect(),
            png::ColorType::GrayscaleAlpha => {
                buffer.as_chunks::<2>().0.iter().flat_map(|&[c, a]| [over_white(c, a); 3]).collect()
            }
            png::ColorType::Indexed => return Err("palette that does not expand".into()),
        };
        Ok(Self { width: width as usize, height: height as usize, rgb })
    }

    /// The planar bytes of the square of `side` pixels whose upper left corner is at `(left, top)`.
    pub fn crop(&self, left: usize, top: usize, side: usize) -> Vec<u8> {
        let row = |c, y: usize| (0..side).map(move |x| self.rgb[3 * ((top + y) * self.width + left + x) + c]);
        (0..3).flat_map(|c| (0..side).flat_map(move |y| row(c, y))).collect()
    }

    /// The largest centred square, averaged over areas to `size` pixels a side: planar bytes, exactly rounded.
    pub fn square(&self, size: usize) -> Vec<u8> {
        let side = self.width.min(self.height);
        let planes = self.crop((self.width - side) / 2, (self.height - side) / 2, side);
        // In units of 1/size of a source pixel, source pixel k covers [k size, (k+1) size) and target i [i side, (i+1) side).
        let overlaps: Vec<Vec<(usize, u64)>> = (0..size)
            .map(|i| {
                let (from, to) = (i * side, (i + 1) * side);
                let overlap = |k: usize| ((k + 1) * size).min(to) - (k * size).max(from);
                (from / size..to.div_ceil(size)).map(|k| (k, overlap(k) as u64)).collect()
            })
            .collect();
        let area = (side * side) as u64;
        let mean = |plane: &[u8], x: usize, y: usize| {
            let row = |k: usize| overlaps[x].iter().map(|&(j, w)| w * u64::from(plane[k * side + j])).sum::<u64>();
            let sum: u64 = overlaps[y].iter().map(|&(k, w)| w * row(k)).sum();
            ((sum + area / 2) / area) as u8
        };
        let mut pixels = Vec::with_capacity(3 * size * size);
        for plane in planes.chunks_exact(side * side) {
            pixels.extend((0..size * size).map(|p| mean(plane, p % size, p / size)));
        }
        pixels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32, color: png::ColorType, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        bytes
    }

    #[test]
    fn every_colour_type_is_flattened_on_white() {
        let check = |color, data: &[u8], expected: [u8; 3]| {
            assert_eq!(Raster::from_png(&png(1, 1, color, data)).unwrap().rgb, expected, "{color:?}");
        };
        check(png::ColorType::Rgb, &[1, 2, 3], [1, 2, 3]);
        check(png::ColorType::Rgba, &[1, 2, 3, 255], [1, 2, 3]);
        check(png::ColorType::Rgba, &[1, 2, 3, 0], [255; 3]);
        check(png::ColorType::Rgba, &[0, 100, 255, 51], [204, 224, 255]);
        check(png::ColorType::Grayscale, &[7], [7; 3]);
        check(png::ColorType::GrayscaleAlpha, &[0, 127], [128; 3]);
    }

    #[test]
    fn squares_are_centred_and_average_areas() {
        // 4 x 2 pixels: the middle square is columns 1 and 2.
        let gray = [9, 0, 100, 9, 9, 50, 250, 9];
        let raster = Raster::from_png(&png(4, 2, png::ColorType::Grayscale, &gray)).unwrap();
        assert_eq!(raster.square(2)[..4], [0, 100, 50, 250]);
        assert_eq!(raster.square(1), [100; 3]);
        assert_eq!(raster.square(4)[..8], [0, 0, 100, 100, 0, 0, 100, 100]);
        // Three pixels to two: each target covers one and a half.
        let raster = Raster::from_png(&png(3, 3, png::ColorType::Grayscale, &[0, 90, 240].repeat(3))).unwrap();
        assert_eq!(raster.square(2)[..2], [30, 190]);
    }

    #[test]
    fn hostile_files_are_refused() {
        let good = png(2, 2, png::ColorType::Rgb, &[5; 12]);
        let claiming = |side: u32| {
            let mut bytes = good.clone();
            bytes[16..20].copy_from_slice(&side.to_be_bytes());
            bytes[20..24].copy_from_slice(&side.to_be_bytes());
            let crc = crc32(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&crc.to_be_bytes());
            bytes
        };
        Raster::from_png(&good).unwrap();
        Raster::from_png(&claiming(2)).unwrap(); // so that what follows fails for its size, not for its checksum
        for (bytes, word) in [
            (vec![], "PNG"),
            (b"not an image".to_vec(), "PNG"),
            (good[..good.len() / 2].to_vec(), "PNG"),
            (claiming(0), "PNG"),
            (claiming(10_000), "megapixels"),
            (claiming(1 << 30), "pixels a side"),
        ] {
            let why = Raster::from_png(&bytes).err().unwrap();
            assert!(why.contains(word), "{why}");
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let step =
            |c: u32, b: &u8| (0..8).fold(c ^ u32::from(*b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()));
        !bytes.iter().fold(!0, step)
    }
}
