use super::Args;
use crate::{
    Error, Result, files,
    picture::{Grid, Row as GridRow, save_png},
};
use hdd_protocol::{Charter, Digest, Picture, Provenance, SampleRequest, Share, Verified};
use serde::Serialize;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

/// Keyword of the PNG text chunk that holds [`Record`]s as JSON.
const KEYWORD: &str = "hdd-provenance";

/// All that came back.
pub struct Made {
    /// The network.
    pub charter: Verified<Charter>,
    /// One a prompt.
    pub rows: Vec<Row>,
}

/// The pictures of one request.
pub struct Row {
    /// What was asked for.
    pub request: SampleRequest,
    /// Who made them.
    pub aggregator: String,
    /// In the order of their seeds.
    pub pictures: Vec<(Picture, Provenance)>,
}

/// How one picture came to be, as files carry it.
#[derive(Serialize)]
struct Record<'a> {
    row: usize,
    column: usize,
    prompt: &'a str,
    negative: &'a str,
    seed: u64,
    settings: &'a SampleRequest,
    charter: Digest,
    charter_name: &'a str,
    router: Option<Digest>,
    aggregator: &'a str,
    experts: &'a [Share],
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

/// Where pictures go; made before they are asked for, so that a bad path costs no waiting.
pub struct Output {
    out: PathBuf,
    separate: bool,
    scale: Option<u32>,
    json: Option<PathBuf>,
}

impl Output {
    /// # Errors
    /// [`Error::Usage`] for a path that no file can be written to.
    pub fn new(args: &Args) -> Result<Self> {
        if args.out.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
            return Err(Error::Usage(format!("--out {} must end in .png", args.out.display())));
        }
        for path in std::iter::once(&args.out).chain(&args.samples_json) {
            files::check_target(path)?;
        }
        let Args { out, separate, scale, samples_json, .. } = args.clone();
        Ok(Self { out, separate, scale, json: samples_json })
    }

    /// Writes the files and names the pictures among them.
    ///
    /// # Errors
    /// As [`Grid::draw`] and [`save_png`].
    pub fn write(&self, made: &Made) -> Result<Vec<PathBuf>> {
        let records = self.records(made);
        let mut files = Vec::new();
        if self.separate {
            let pictures = made.rows.iter().flat_map(|row| row.pictures.iter().map(|(picture, _)| picture));
            for (record, picture) in records.iter().zip(pictures) {
                let path = self.file(record.row, record.column);
                save(&path, picture, record.prompt, std::slice::from_ref(record))?;
                files.push(path);
            }
        } else {
            let width = made.rows.iter().flat_map(|row| &row.pictures).map(|(picture, _)| picture.width).max();
            let rows = made.rows.iter().map(|row| GridRow {
                label: row.request.prompt.clone(),
                pictures: row.pictures.iter().map(|(picture, _)| picture.clone()).collect(),
            });
            let scale = self.scale.unwrap_or(Grid::scale_for(width.unwrap_or(1)));
            let grid = Grid { rows: rows.collect(), scale }.draw()?;
            let prompts: Vec<_> = made.rows.iter().map(|row| row.request.prompt.as_str()).collect();
            save(&self.out, &grid, &prompts.join("\n"), &records)?;
            files.push(self.out.clone());
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_vec_pretty(&records)?;
            files::replace(path, |file| file.write_all(&text))?;
        }
        Ok(files)
    }

    fn records<'a>(&self, made: &'a Made) -> Vec<Record<'a>> {
        let of_row = |(row, r): (usize, &'a Row)| {
            r.pictures.iter().enumerate().map(move |(column, (_, provenance))| Record {
                row,
                column,
                prompt: &r.request.prompt,
                negative: &r.request.negative,
                seed: provenance.seed,
                settings: &r.request,
                charter: provenance.charter,
                charter_name: &made.charter.name,
                router: provenance.router,
                aggregator: &r.aggregator,
                experts: &provenance.experts,
                file: self.separate.then(|| self.file(row, column)),
            })
        };
        made.rows.iter().enumerate().flat_map(of_row).collect()
    }

    /// `fruit.png` becomes `fruit-1-1.png` for the first picture of the first prompt.
    fn file(&self, row: usize, column: usize) -> PathBuf {
        let stem = self.out.file_stem().unwrap_or_default().to_string_lossy();
        self.out.with_file_name(format!("{stem}-{}-{}.png", row + 1, column + 1))
    }
}

fn save(path: &Path, picture: &Picture, description: &str, records: &[Record<'_>]) -> Result<()> {
    let software = format!("hdd-node {}", env!("CARGO_PKG_VERSION"));
    let provenance = serde_json::to_string(records)?;
    save_png(path, picture, &[("Description", description), ("Software", &software), (KEYWORD, &provenance)])
}
