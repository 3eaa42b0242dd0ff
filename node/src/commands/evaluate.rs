//! `hdd-node evaluate`: do the pictures show what was asked for?
//!
//! Asks an aggregator as `sample` does, for prompts that name images at hand, and ranks all images by their distance to
//! each picture in 8x8 means of the pixels. A picture counts if the image that its prompt names, in either style, is among
//! the nearest twentieth; chance is 5%.

use super::sample;
use crate::{
    Error, Result, charters, files,
    settings::{CharterChoice, Settings},
    table,
    torch::ImageArgs,
};
use hdd_expert_runtime::data::Images;
use hdd_protocol::Picture;
use serde::Serialize;
use std::{collections::BTreeMap, io::Write as _, path::PathBuf};

/// Cells a side of the means.
const GRID: usize = 8;
/// A picture counts if fewer than this share of the images are nearer than its own.
const NEAREST: f64 = 0.05;

/// What to ask for and what to compare with.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "A picture counts if the image that its prompt names is among the nearest 5% of all images, in 8x8 means of the \
                  pixels; chance is 5%.\n\nExample:\n  hdd-node evaluate --prompt 'fluent3d red apple' --count 4 --out apples.png --report apples.json"
)]
pub struct Args {
    #[command(flatten)]
    sample: sample::Args,
    /// Images that the prompts name
    #[command(flatten)]
    images: ImageArgs,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Serialize)]
struct Tally {
    pictures: usize,
    near: usize,
}

impl Tally {
    fn add(&mut self, near: bool) {
        self.pictures += 1;
        self.near += usize::from(near);
    }

    fn share(&self) -> f64 {
        self.near as f64 / self.pictures.max(1) as f64
    }
}

/// The figures.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Share of pictures whose own image is among the nearest 5%.
    share: f64,
    all: Tally,
    by_prompt: BTreeMap<String, Tally>,
    /// By the expert that contributed most to the picture.
    by_expert: BTreeMap<String, Tally>,
}

/// Samples, writes what `sample` writes, and prints the figures.
///
/// # Errors
/// As [`sample::run`]; [`Error::Usage`] for a prompt that names no image.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    args.report.as_deref().map_or(Ok(()), files::check_target)?;
    if settings.charter == CharterChoice::BuiltIn {
        // What cannot be judged is said before it is asked for.
        let charter = charters::built_in()?;
        let (images, _) = args.images.read(&charter)?;
        args.sample.requests()?.iter().try_for_each(|request| named(&images, &request.prompt).map(drop))?;
    }
    let made = sample::make(&args.sample, &settings).await?;
    let (images, _) = args.images.read(&made.charter)?;
    let means: Vec<Vec<f32>> = (0..images.len()).map(|i| cell_means(&images.picture(i))).collect();
    let mut report = Report::default();
    for row in &made.rows {
        let own = named(&images, &row.request.prompt)?;
        for (picture, provenance) in &row.pictures {
            let near = is_near(&cell_means(picture), &means, &own);
            report.all.add(near);
            report.by_prompt.entry(row.request.prompt.clone()).or_default().add(near);
            if let Some(first) = provenance.experts.first() {
                let expert = format!("{} cluster {} {}", first.manifest.short(), first.cluster, first.objective);
                report.by_expert.entry(expert).or_default().add(near);
            }
        }
    }
    report.share = report.all.share();
    sample::write(&args.sample, made).await?;
    if let Some(path) = &args.report {
        let json = serde_json::to_vec_pretty(&report)?;
        files::replace(path, |file| file.write_all(&json))?;
    }
    if settings.json { table::print_json(&report) } else { print(&report) }
}

fn print(report: &Report) -> Result<()> {
    let rows = |tallies: &BTreeMap<String, Tally>| {
        let row =
            |(name, t): (&String, &Tally)| vec![name.clone(), t.pictures.to_string(), format!("{:.2}", t.share())];
        tallies.iter().map(row).collect::<Vec<_>>()
    };
    let head = ["", "pictures", "near their image"];
    table::print(&format!("{}\n", table::table(&[&["prompt"], &head[1..]].concat(), rows(&report.by_prompt))))?;
    table::print(&format!(
        "{}\n",
        table::table(&[&["strongest expert"], &head[1..]].concat(), rows(&report.by_expert))
    ))?;
    table::print(&format!(
        "{} of {} pictures ({:.0}%) have the image that they name among the nearest 5% (chance: 5%)\n",
        report.all.near,
        report.all.pictures,
        100.0 * report.share
    ))
}

/// Images that the prompt names: its whole, or all after its first word, the style.
fn named(images: &Images, prompt: &str) -> Result<Vec<usize>> {
    let name = prompt.split_once(' ').map_or(prompt, |(_, name)| name);
    let own: Vec<usize> = (0..images.len()).filter(|&i| images.names[i] == prompt || images.names[i] == name).collect();
    if own.is_empty() {
        return Err(Error::Usage(format!(
            "the prompt '{prompt}' names no image; write a style and a name, such as 'noto red apple'"
        )));
    }
    Ok(own)
}

/// Mean colours of an 8x8 raster.
fn cell_means(picture: &Picture) -> Vec<f32> {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let mut sums = vec![0f32; GRID * GRID * 3];
    for (i, pixel) in picture.rgb.chunks_exact(3).enumerate() {
        let cell = (i / width * GRID / height) * GRID + i % width * GRID / width;
        (0..3).for_each(|c| sums[3 * cell + c] += f32::from(pixel[c]));
    }
    sums
}

/// True if fewer than a twentieth of `all` are nearer to `picture` than the nearest of its `own`.
fn is_near(picture: &[f32], all: &[Vec<f32>], own: &[usize]) -> bool {
    let distance = |means: &Vec<f32>| means.iter().zip(picture).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    let best = own.iter().map(|&i| distance(&all[i])).fold(f32::INFINITY, f32::min);
    let nearer = all.iter().filter(|means| distance(means) < best).count();
    (nearer as f64) < NEAREST * all.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_near_itself_and_noise_is_near_nothing_in_particular() {
        let images = hdd_expert_runtime::data::emoji32().unwrap();
        let means: Vec<Vec<f32>> = (0..images.len()).map(|i| cell_means(&images.picture(i))).collect();
        let own = named(&images, &format!("noto {}", images.names[100])).unwrap();
        assert!(own.contains(&100));
        assert!(is_near(&means[100], &means, &own));
        // Some other image's picture is near only one name in twenty.
        let hits = (0..images.len()).step_by(16).filter(|&i| is_near(&means[i], &means, &own)).count();
        assert!(hits < 40, "{hits}");
        assert!(named(&images, "noto no such thing").is_err());
    }
}
