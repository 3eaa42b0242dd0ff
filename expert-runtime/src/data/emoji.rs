//! The embedded emoji set; its README beside the files says where it comes from and how it is laid out.

use super::{Images, broken, raster::Raster};
use crate::Result;

const SIZE: usize = 32;
const RASTER: &[u8] = include_bytes!("../../data/emoji32/emoji32.png");
const TABLE: &str = include_str!("../../data/emoji32/emoji32.csv");

/// The embedded 3,235 emoji, 32x32; a caption is style and name, such as `noto grinning face`.
///
/// # Errors
/// [`crate::Error::Data`] if the embedded files were replaced by others that do not fit together.
pub fn emoji32() -> Result<Images> {
    let refuse = |why: String| broken("the embedded emoji set", format!("{why}; restore data/emoji32 and build again"));
    let raster = Raster::from_png(RASTER).map_err(refuse)?;
    let columns = raster.width / SIZE;
    let mut images = Images::empty(SIZE as u32);
    for (i, line) in TABLE.lines().skip(1).enumerate() {
        let fields = csv_fields(line);
        let [_, _, style, name, ..] = &fields[..] else {
            return Err(refuse(format!("emoji32.csv has too few fields for image {i}")));
        };
        let (left, top) = (i % columns * SIZE, i / columns * SIZE);
        if top + SIZE > raster.height {
            return Err(refuse(format!("emoji32.png has no image {i}")));
        }
        images.pixels.extend(raster.crop(left, top, SIZE));
        images.captions.push(format!("{style} {name}"));
        images.names.push(name.clone());
    }
    Ok(images)
}

/// The fields of one line of RFC 4180 CSV without line breaks inside fields.
fn csv_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => push(&mut fields, '"'),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => push(&mut fields, c),
        }
    }
    fields
}

fn push(fields: &mut [String], c: char) {
    if let Some(field) = fields.last_mut() {
        field.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_whole() {
        let images = emoji32().unwrap();
        assert_eq!((images.len(), images.captions.len(), images.pixels.len()), (3235, 3235, 3235 * 3 * 32 * 32));
        assert_eq!(images.captions[..2], ["noto grinning face", "fluent3d grinning face"]);
        assert!(images.names.iter().any(|n| n == "family: man, woman, girl, boy"));
        assert!(images.captions.iter().all(|c| c.starts_with("noto ") || c.starts_with("fluent3d ")));
        // On white, and none of them blank: a wrong offset would cut through drawings.
        let blank = (0..images.len()).filter(|&i| images.planes(i).iter().all(|&p| p > 250)).count();
        assert_eq!(blank, 0);
    }

    #[test]
    fn a_grinning_face_is_yellow_and_survives_selection() {
        let images = emoji32().unwrap().select(&[1, 0]);
        assert_eq!(images.captions, ["fluent3d grinning face", "noto grinning face"]);
        for i in 0..2 {
            let picture = images.picture(i);
            assert!(picture.is_whole());
            assert_eq!(picture.rgb[..3], [255; 3], "corner");
            let cheek = &picture.rgb[3 * (16 * 32 + 5)..][..3];
            assert!(cheek[0] > 200 && cheek[1] > 120 && cheek[2] < 120, "{cheek:?}");
        }
    }

    #[test]
    fn tensors_run_from_minus_one_to_one() {
        let images = emoji32().unwrap().select(&[0, 7]);
        let tensor = images.tensor(tch::Device::Cpu).unwrap();
        assert_eq!(tensor.size(), [2, 3, 32, 32]);
        assert_eq!(tensor.double_value(&[0, 0, 0, 0]), 1.0);
        let expected = f64::from(images.planes(1)[2 * 1024 + 16 * 32 + 9]) / 127.5 - 1.0;
        assert!((tensor.double_value(&[1, 2, 16, 9]) - expected).abs() < 1e-6);
        assert!(tensor.min().double_value(&[]) >= -1.0);
    }

    #[test]
    fn quoted_fields_keep_commas_and_quotes() {
        assert_eq!(csv_fields("1,\"a, b\",\"say \"\"hi\"\"\",,z"), ["1", "a, b", "say \"hi\"", "", "z"]);
    }
}
