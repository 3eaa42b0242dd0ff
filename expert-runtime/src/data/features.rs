use super::{Images, broken};
use crate::Result;
use hdd_protocol::FeatureExtractor;

/// One unit vector an image; the dot product of two says how alike they are, and a charter's centroids are of the same kind.
///
/// # Errors
/// [`crate::Error::Data`] for an extractor that this build does not have, or a grid finer than the images.
pub fn features(extractor: &FeatureExtractor, images: &Images) -> Result<Vec<Vec<f32>>> {
    match *extractor {
        FeatureExtractor::CellMeans { grid } if (1..=images.size).contains(&grid) => {
            Ok((0..images.len()).map(|i| cell_means(images.planes(i), images.size as usize, grid as usize)).collect())
        }
        FeatureExtractor::CellMeans { grid } => Err(broken(
            "feature extractor cell-means",
            format!("cannot lay a grid of {grid} over images of {0} pixels; the grid must be 1 to {0}", images.size),
        )),
        FeatureExtractor::Dinov2 { weights } => Err(broken(
            format!("feature extractor dinov2 ({})", weights.short()),
            "this build cannot run it; choose a charter whose extractor is cell-means",
        )),
    }
}

/// Mean of `255 - colour` in each cell, `3 x grid x grid`, scaled to length 1; an all-white image has no direction of its
/// own and gets the diagonal.
fn cell_means(planes: &[u8], size: usize, grid: usize) -> Vec<f32> {
    let edge = |cell: usize| cell * size / grid;
    let mut means = Vec::with_capacity(3 * grid * grid);
    for plane in planes.chunks_exact(size * size) {
        for cell in 0..grid * grid {
            let (rows, columns) = (edge(cell / grid)..edge(cell / grid + 1), edge(cell % grid)..edge(cell % grid + 1));
            let pixels = (rows.len() * columns.len()) as f64;
            let sum: u32 =
                rows.map(|y| plane[y * size..][columns.clone()].iter().map(|&p| 255 - u32::from(p)).sum::<u32>()).sum();
            means.push(f64::from(sum) / pixels);
        }
    }
    let norm = means.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm == 0.0 {
        let diagonal = (1.0 / (means.len() as f64).sqrt()) as f32;
        return vec![diagonal; means.len()];
    }
    means.iter().map(|x| (x / norm) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdd_protocol::Digest;

    fn image(pixels: Vec<u8>, size: u32) -> Images {
        Images { pixels, size, captions: vec![String::new()], names: vec![String::new()] }
    }

    #[test]
    fn cells_hold_their_own_distance_from_white() {
        // Red cells except the lower right one, which is black: 4 x 4 pixels, 2 x 2 cells.
        let mut pixels = [vec![255; 16], vec![0; 32]].concat();
        for p in [10, 11, 14, 15] {
            pixels[p] = 0;
        }
        let feature = &features(&FeatureExtractor::CellMeans { grid: 2 }, &image(pixels, 4)).unwrap()[0];
        let unit = 1.0 / 3.0; // nine entries of equal size
        let expected = [0.0, 0.0, 0.0, unit, unit, unit, unit, unit, unit, unit, unit, unit];
        assert!(feature.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{feature:?}");
    }

    #[test]
    fn all_images_have_unit_features_white_ones_too() {
        for (pixels, size, grid) in [(vec![255; 48], 4, 3), (vec![0; 48], 4, 4), ((0..75).collect(), 5, 2)] {
            let feature = &features(&FeatureExtractor::CellMeans { grid }, &image(pixels, size)).unwrap()[0];
            assert_eq!(feature.len(), 3 * (grid * grid) as usize);
            assert!((feature.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn what_cannot_be_computed_is_named() {
        let images = image(vec![0; 48], 4);
        for (extractor, word) in [
            (FeatureExtractor::CellMeans { grid: 0 }, "1 to 4"),
            (FeatureExtractor::CellMeans { grid: 5 }, "1 to 4"),
            (FeatureExtractor::Dinov2 { weights: Digest::of(b"w") }, "dinov2"),
        ] {
            let error = features(&extractor, &images).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
