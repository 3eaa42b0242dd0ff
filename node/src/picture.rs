//! Pictures on disk: grids with captions, and PNG files that say how they came to be.
//!
//! A [`Grid`] draws rows of pictures, each row's label under it in an 8x8 bitmap font. [`save_png`] writes any picture with
//! text chunks (PNG's iTXt, UTF-8), whole or not at all.

use crate::{Error, Result, files};
use font8x8::legacy::{BASIC_LEGACY, LATIN_LEGACY};
use hdd_protocol::Picture;
use std::{io::Write as _, path::Path};

/// Side of a glyph, pixels.
const GLYPH: u32 = 8;
/// Height of a line of text, pixels.
const LINE: u32 = 10;
/// Space around the grid and above a label, pixels.
const MARGIN: u32 = 8;
/// Space between pictures, pixels.
const GAP: u32 = 4;
/// A label has at least this many characters a line, however narrow its row.
const LINE_CHARACTERS: u32 = 20;
/// A label has at most this many lines; what is cut ends in "...".
const LINES: usize = 8;
/// No side of a grid is longer, pixels: viewers choke on more.
const LONGEST_SIDE: u64 = 16_384;

const PAPER: [u8; 3] = [255; 3];
const INK: [u8; 3] = [40; 3];

/// Pictures side by side with a text under them.
#[derive(Debug, Clone)]
pub struct Row {
    /// The text; empty for none.
    pub label: String,
    /// The pictures, left to right.
    pub pictures: Vec<Picture>,
}

/// Rows of pictures.
#[derive(Debug, Clone)]
pub struct Grid {
    /// The rows, top to bottom.
    pub rows: Vec<Row>,
    /// Each pixel becomes a square of this side; at least 1.
    pub scale: u32,
}

impl Grid {
    /// The scale at which pictures of `width` pixels are at least 96 wide, so that a 32x32 picture can be looked at.
    pub fn scale_for(width: u32) -> u32 {
        96u32.div_ceil(width.max(1))
    }

    /// Draws the grid on white.
    ///
    /// # Errors
    /// [`Error::Picture`] if there is no picture, one is not whole, or a side would pass 16,384 pixels.
    pub fn draw(&self) -> Result<Picture> {
        let pictures = || self.rows.iter().flat_map(|row| &row.pictures);
        let side = |side: fn(&Picture) -> u32| pictures().map(side).max().unwrap_or(0);
        let columns = self.rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0) as u64;
        let refused = |width, height, why: &str| Error::Picture { width, height, why: why.into() };
        if columns == 0 || !pictures().all(Picture::is_whole) {
            return Err(refused(
                side(|p| p.width).into(),
                side(|p| p.height).into(),
                "there is none, or its pixels are incomplete",
            ));
        }
        let (scale, margin, gap) = (u64::from(self.scale.max(1)), u64::from(MARGIN), u64::from(GAP));
        let (cell_width, cell_height) = (u64::from(side(|p| p.width)) * scale, u64::from(side(|p| p.height)) * scale);
        let content = (columns * (cell_width + gap) - gap).max(u64::from(LINE_CHARACTERS * GLYPH));
        let characters = (content / u64::from(GLYPH)) as usize;
        let labels: Vec<Vec<String>> = self.rows.iter().map(|row| wrap(&row.label, characters)).collect();
        let row_height = |lines: &Vec<String>| cell_height + gap + lines.len() as u64 * u64::from(LINE) + margin;
        let (width, height) = (content + 2 * margin, labels.iter().map(row_height).sum::<u64>() + margin);
        if width > LONGEST_SIDE || height > LONGEST_SIDE {
            let why = format!("at most {LONGEST_SIDE} a side; use fewer prompts, a smaller --scale, or --separate");
            return Err(refused(width, height, &why));
        }
        let mut canvas = Canvas::new(width as u32, height as u32);
        let mut top = MARGIN;
        for (row, lines) in self.rows.iter().zip(&labels) {
            for (i, picture) in row.pictures.iter().enumerate() {
                canvas.picture(MARGIN + i as u32 * (cell_width as u32 + GAP), top, picture, self.scale.max(1));
            }
            for (i, line) in lines.iter().enumerate() {
                canvas.text(MARGIN, top + cell_height as u32 + GAP + i as u32 * LINE, line);
            }
            top += row_height(lines) as u32;
        }
        Ok(canvas.0)
    }
}

/// Breaks a text at spaces, and within words that are longer than a line, into at most [`LINES`] lines.
fn wrap(text: &str, characters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut length = 0; // of the last line, in characters
    for word in text.split_whitespace() {
        for piece in word.chars().collect::<Vec<_>>().chunks(characters) {
            match lines.last_mut().filter(|_| length + 1 + piece.len() <= characters) {
                Some(line) => {
                    line.push(' ');
                    line.extend(piece);
                    length += 1 + piece.len();
                }
                None => {
                    lines.push(piece.iter().collect());
                    length = piece.len();
                }
            }
        }
        if lines.len() > LINES {
            lines.truncate(LINES);
            if let Some(last) = lines.last_mut() {
                *last = last.chars().take(characters.saturating_sub(3)).chain("...".chars()).collect();
            }
            break;
        }
    }
    lines
}

/// Rows of eight bits, the lowest leftmost. Characters outside Latin-1 show as '?'.
fn glyph(character: char) -> [u8; 8] {
    let code = character as usize;
    let latin = || code.checked_sub(0xA0).and_then(|i| LATIN_LEGACY.get(i));
    *BASIC_LEGACY.get(code).or_else(latin).unwrap_or(&BASIC_LEGACY[b'?' as usize])
}

struct Canvas(Picture);

impl Canvas {
    fn new(width: u32, height: u32) -> Self {
        Self(Picture { width, height, rgb: PAPER.repeat(width as usize * height as usize) })
    }

    fn set(&mut self, x: u32, y: u32, colour: [u8; 3]) {
        let start = 3 * (y as usize * self.0.width as usize + x as usize);
        if let Some(pixel) = self.0.rgb.get_mut(start..start + 3).filter(|_| x < self.0.width) {
            pixel.copy_from_slice(&colour);
        }
    }

    fn picture(&mut self, left: u32, top: u32, picture: &Picture, scale: u32) {
        for (i, pixel) in picture.rgb.chunks_exact(3).enumerate() {
            let (x, y) = (i as u32 % picture.width * scale, i as u32 / picture.width * scale);
            for (dx, dy) in (0..scale).flat_map(|dx| (0..scale).map(move |dy| (dx, dy))) {
                self.set(left + x + dx, top + y + dy, [pixel[0], pixel[1], pixel[2]]);
            }
        }
    }

    fn text(&mut self, left: u32, top: u32, text: &str) {
        for (i, character) in text.chars().enumerate() {
            for (y, bits) in glyph(character).into_iter().enumerate() {
                for x in (0..GLYPH).filter(|x| bits >> x & 1 == 1) {
                    self.set(left + i as u32 * GLYPH + x, top + y as u32, INK);
                }
            }
        }
    }
}

/// Writes an RGB PNG with `text` chunks of keyword and content, to a temporary file that is then renamed.
///
/// # Errors
/// [`Error::Picture`] if the pixels are not as many as the sides say or a keyword is not 1 to 79 Latin-1 characters;
/// [`Error::Io`] if the file cannot be written.
pub fn save_png(path: &Path, picture: &Picture, text: &[(&str, &str)]) -> Result<()> {
    let refused = |why: String| Error::Picture { width: picture.width.into(), height: picture.height.into(), why };
    let mut file = Vec::new();
    let mut encode = || -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, content) in text {
            encoder.add_itxt_chunk((*keyword).into(), content.replace('\0', " "))?; // the format has no NUL
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&picture.rgb)?;
        writer.finish()
    };
    encode().map_err(|e| refused(e.to_string()))?;
    files::replace(path, |out| out.write_all(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: u32, height: u32, colour: [u8; 3]) -> Picture {
        Picture { width, height, rgb: colour.repeat((width * height) as usize) }
    }

    fn count(picture: &Picture, colour: [u8; 3]) -> usize {
        picture.rgb.chunks_exact(3).filter(|pixel| *pixel == colour).count()
    }

    #[test]
    fn a_grid_shows_every_picture_enlarged_and_every_label() {
        let row = |label: &str| Row { label: label.into(), pictures: vec![plain(32, 32, [255, 0, 0]); 2] };
        let draw = |label: &str| Grid { rows: vec![row(label), row("")], scale: 3 }.draw().unwrap();
        let (with, without) = (draw("red cat"), draw(""));
        assert_eq!(with.width, 2 * 96 + GAP + 2 * MARGIN);
        assert_eq!(without.height, 2 * (96 + GAP + MARGIN) + MARGIN);
        assert_eq!(with.height, without.height + LINE);
        assert_eq!(count(&with, [255, 0, 0]), 4 * 96 * 96);
        assert_eq!(count(&without, INK), 0);
        let bits = |text: &str| text.chars().flat_map(glyph).map(|row| row.count_ones() as usize).sum::<usize>();
        assert_eq!(count(&with, INK), bits("red cat"));
    }

    #[test]
    fn enlarging_repeats_pixels() {
        let picture = Picture { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 6] };
        let grid = Grid { rows: vec![Row { label: String::new(), pictures: vec![picture] }], scale: 2 }.draw().unwrap();
        let pixel = |x, y| &grid.rgb[3 * (y * grid.width + x) as usize..][..3];
        for y in [MARGIN, MARGIN + 1] {
            let row: Vec<_> = (MARGIN..MARGIN + 5).map(|x| pixel(x, y)).collect();
            assert_eq!(row, [&[1, 2, 3][..], &[1, 2, 3], &[4, 5, 6], &[4, 5, 6], &PAPER]);
        }
        assert_eq!(Grid::scale_for(32), 3);
        assert_eq!(Grid::scale_for(256), 1);
    }

    #[test]
    fn labels_wrap_at_spaces_and_end_somewhere() {
        assert_eq!(wrap("a red  cat", 5), ["a red", "cat"]);
        assert_eq!(wrap("abcdefg hi", 5), ["abcde", "fg hi"]);
        assert_eq!(wrap("", 5), [""; 0]);
        let long = wrap(&"word ".repeat(10_000), 20);
        assert_eq!(long.len(), LINES);
        assert!(long[LINES - 1].ends_with("...") && long.iter().all(|line| line.chars().count() <= 20));
    }

    #[test]
    fn grids_that_cannot_be_are_refused() {
        let grid = |pictures, scale| Grid { rows: vec![Row { label: "x".into(), pictures }], scale };
        grid(vec![plain(8, 8, INK)], 1).draw().unwrap();
        for bad in [
            grid(vec![], 1),
            grid(vec![plain(8, 8, INK)], u32::MAX),
            grid(vec![plain(4096, 8, INK); 5], 1),
            grid(vec![Picture { width: 8, height: 8, rgb: vec![0; 9] }], 1),
        ] {
            assert!(matches!(bad.draw(), Err(Error::Picture { .. })));
        }
    }

    #[test]
    fn a_file_carries_its_pixels_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let picture = Picture { width: 2, height: 2, rgb: (0..12).collect() };
        save_png(&path, &picture, &[("Description", "ein Kätzchen, 猫\0"), ("hdd-provenance", "{}")]).unwrap();
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
        let mut rgb = vec![0; 12];
        reader.next_frame(&mut rgb).unwrap();
        reader.finish().unwrap();
        let texts: Vec<_> =
            reader.info().utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap())).collect();
        assert_eq!(rgb, picture.rgb);
        assert_eq!(
            texts,
            [("Description".into(), "ein Kätzchen, 猫 ".into()), ("hdd-provenance".into(), "{}".into())]
                as [(String, String); 2]
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
        assert!(save_png(&folder.path().join("no/such/folder.png"), &picture, &[]).is_err());
    }
}
