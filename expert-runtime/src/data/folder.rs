//! A person's own images: a flat folder of PNG files, each with its caption in a `.txt` file of the same stem beside it,
//! or else in its file name.

use super::{Images, broken, raster::Raster};
use crate::{Result, error::At};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};
use tracing::{debug, warn};

/// Largest image file that is read, bytes.
const FILE: u64 = 64 << 20;
/// Longest caption that is read, bytes.
const CAPTION: u64 = 4 << 10;

/// Reads the PNG files of the folder `path` in the order of their names, each cut to its centred square and averaged to
/// `size` pixels a side, with transparency on white. Images that cannot be read are skipped, with a warning that counts them.
///
/// An image's caption is the text file's, or else the stem with `-` and `_` as spaces; its name is the stem.
///
/// # Errors
/// [`crate::Error::Io`] if there is no such folder; [`crate::Error::Data`] if it holds no PNG file, or none that can be read.
pub fn read_folder(path: &Path, size: u32) -> Result<Images> {
    let mut files = png_files(path).at("read the image folder", path)?;
    files.sort();
    if files.is_empty() {
        return Err(broken(
            format!("image folder {}", path.display()),
            "it holds no PNG file; put some there, or name another",
        ));
    }
    let mut images = Images::empty(size);
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    for file in &files {
        match read_image(file, size) {
            Ok((pixels, caption)) => {
                images.pixels.extend(pixels);
                images.captions.push(caption);
                images.names.push(stem(file));
            }
            Err(why) => {
                debug!(file = %file.display(), why, "image skipped");
                *skipped.entry(why).or_default() += 1;
            }
        }
    }
    // File names may tell what the images show: they go no further than the debug log.
    for (why, count) in &skipped {
        warn!(count, why, "images skipped");
    }
    if images.is_empty() {
        let reasons: Vec<String> = skipped.iter().map(|(why, count)| format!("{count} with {why}")).collect();
        let why = format!("none of its {} PNG files can be read ({}); replace them", files.len(), reasons.join("; "));
        return Err(broken(format!("image folder {}", path.display()), why));
    }
    Ok(images)
}

/// Reads the PNG files `paths` as [`read_folder`] does, but skips none.
///
/// # Errors
/// [`crate::Error::Data`] with the first that cannot be read.
pub fn read_files(paths: &[PathBuf], size: u32) -> Result<Images> {
    let mut images = Images::empty(size);
    for path in paths {
        let (pixels, caption) =
            read_image(path, size).map_err(|why| broken(format!("image {}", path.display()), why))?;
        images.pixels.extend(pixels);
        images.captions.push(caption);
        images.names.push(stem(path));
    }
    Ok(images)
}

fn png_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
            files.push(path);
        }
    }
    Ok(files)
}

fn stem(file: &Path) -> String {
    file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Pixels and caption, or a clause that says why not.
fn read_image(file: &Path, size: u32) -> Result<(Vec<u8>, String), String> {
    let bytes = read_bounded(file, FILE).map_err(|e| format!("unreadable file ({e})"))?;
    let pixels = Raster::from_png(&bytes)?.square(size as usize);
    let caption = match read_bounded(&file.with_extension("txt"), CAPTION) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| "caption that is no UTF-8".to_owned())?.trim().to_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(format!("unreadable caption ({e})")),
    };
    Ok((pixels, if caption.is_empty() { stem(file).replace(['-', '_'], " ") } else { caption }))
}

/// The file's bytes, at most `limit`.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("over {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn png(gray: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        png::Encoder::new(&mut bytes, 4, 4).write_header().unwrap().write_image_data(&[gray; 16]).unwrap();
        bytes
    }

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn images_come_by_name_with_their_captions_and_broken_ones_are_left_out() {
        let long = vec![b'a'; 5000];
        let folder = folder(&[
            ("c-red_ball.PNG", &png(3)),
            ("a.png", &png(1)),
            ("a.txt", b"  a white cat\n"),
            ("b.png", &png(2)),
            ("b.txt", b""),
            ("broken.png", b"not an image"),
            ("cut.png", &png(9)[..40]),
            ("latin.png", &png(9)),
            ("latin.txt", b"caf\xe9"),
            ("long.png", &png(9)),
            ("long.txt", &long),
            ("notes.md", b"no image"),
        ]);
        fs::create_dir(folder.path().join("folder.png")).unwrap();
        let images = read_folder(folder.path(), 2).unwrap();
        assert_eq!(images.captions, ["a white cat", "b", "c red ball"]);
        assert_eq!(images.names, ["a", "b", "c-red_ball"]);
        assert_eq!(images.pixels, [[1; 12], [2; 12], [3; 12]].concat());
    }

    #[test]
    fn useless_folders_are_errors_that_say_what_to_do() {
        let check = |path: &Path, word: &str| {
            let error = read_folder(path, 2).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(&path.display().to_string()), "{error}");
        };
        let good = folder(&[("a.png", &png(1))]);
        check(&good.path().join("missing"), "cannot read the image folder");
        check(&good.path().join("a.png"), "cannot read the image folder");
        check(folder(&[("a.jpg", b"")]).path(), "no PNG file");
        check(folder(&[("a.png", b""), ("b.png", b"junk")]).path(), "none of its 2 PNG files");
    }
}
