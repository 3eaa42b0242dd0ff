use crate::{Error, Result};
use clap::ValueEnum;
use hdd_protocol::{Conversion, ExpertSelection, SampleRequest, Solver};
use libp2p::PeerId;
use std::{path::PathBuf, time::Duration};

/// No file of prompts is read beyond this, bytes.
const PROMPTS_LIMIT: u64 = 1 << 20;

/// What to ask for, and where the pictures go.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "The aggregator that serves the request reads the prompts.\n\n\
                        Example:\n  hdd-node sample --prompt 'red apple' --prompt 'a smiling cat' --count 4 --out fruit.png")]
pub struct Args {
    /// Text of the pictures, at most 1000 bytes where the charter says no other; repeat it for a row each
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// File with one prompt a line
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Text to steer away from [default: none]
    #[arg(long, value_name = "TEXT", default_value_t = SampleRequest::default().negative, hide_default_value = true)]
    negative: String,
    /// Pictures a prompt, 1 to what the aggregator allows (64 unless it says less)
    #[arg(long, allow_negative_numbers = true, default_value_t = SampleRequest::default().count)]
    count: u32,
    /// Seed of the first picture; the next ones count up
    #[arg(long, allow_negative_numbers = true, default_value_t = SampleRequest::default().seed)]
    seed: u64,
    /// Steps of the solver, 1 to 1000; more are finer and slower
    #[arg(long, allow_negative_numbers = true, default_value_t = SampleRequest::default().steps)]
    steps: u32,
    /// Guidance scale, 0 to 50: how hard to steer toward the prompt; 1 is none
    #[arg(long, allow_negative_numbers = true, default_value_t = SampleRequest::default().guidance)]
    guidance: f32,
    /// Which experts are asked at each point
    #[arg(long, value_enum, default_value_t = Mode::Topk)]
    mode: Mode,
    /// Experts asked with --mode topk, 1 to 1024 [default: 2]
    #[arg(long)]
    k: Option<u16>,
    /// Switching time of --mode threshold, 0 to 1: linear-path experts above, the others at or below
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    threshold: Option<f32>,
    /// With --mode threshold: swap the sides
    #[arg(long, requires = "threshold")]
    reversed: bool,
    /// How an expert's output becomes a velocity on the linear path
    #[arg(long, value_enum, default_value_t = ConversionName::Aligned)]
    conversion: ConversionName,
    /// With --conversion paper: leave out the damping of its Eq. 31
    #[arg(long)]
    undamped: bool,
    /// Ask experts off the linear path only at or below this time, 0 to 1
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    converted_below: Option<f32>,
    /// How the way from noise to picture is integrated
    #[arg(long, value_enum, default_value_t = SolverName::Euler)]
    solver: SolverName,
    /// Shift of the time grid, 0.1 to 20: 1 spaces the steps evenly, above it more of them are spent at high noise
    #[arg(long, allow_negative_numbers = true, default_value_t = SampleRequest::default().shift)]
    shift: f32,
    /// The picture file: a grid with a row a prompt
    #[arg(long, value_name = "FILE.png", default_value = "samples.png")]
    pub(super) out: PathBuf,
    /// Write a file for each picture, FILE-ROW-COLUMN.png, instead of a grid
    #[arg(long)]
    pub(super) separate: bool,
    /// Side of the square that a pixel becomes in the grid, 1 to 64 [default: so that a picture is at least 96 wide]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) scale: Option<u32>,
    /// Also write each picture's provenance to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) samples_json: Option<PathBuf>,
    /// Ask the aggregator with this peer id and no other [default: the one that covers most clusters]
    #[arg(long, value_name = "PEER")]
    pub(super) aggregator: Option<PeerId>,
    /// Look for an aggregator for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The likeliest expert alone
    Top1,
    /// The k likeliest
    Topk,
    /// All of them
    Full,
    /// Experts on the linear path above a time, the others below
    Threshold,
}

/// How an expert's output becomes a velocity on the linear path.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ConversionName {
    /// At the point of the expert's own path with the same signal-to-noise ratio
    Aligned,
    /// As the paper has it, at the same time
    Paper,
}

impl ConversionName {
    /// The conversion, the paper's without its damping if `undamped`.
    ///
    /// # Errors
    /// [`Error::Usage`] for `undamped` with another.
    pub fn with(self, undamped: bool) -> Result<Conversion> {
        match self {
            Self::Aligned if undamped => Err(Error::Usage("--undamped goes with --conversion paper".into())),
            Self::Aligned => Ok(Conversion::DEFAULT),
            Self::Paper => Ok(Conversion::Paper { damping: !undamped }),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SolverName {
    /// First order, one evaluation a step
    Euler,
    /// Second order, two evaluations a step
    Heun,
    /// Second order, one evaluation a step
    Multistep,
}

impl Args {
    /// How long to look for an aggregator.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.wait)
    }

    /// One request a prompt.
    ///
    /// # Errors
    /// [`Error::Usage`] for flags that do not go together; [`Error::Io`] for a file of prompts that cannot be read.
    pub fn requests(&self) -> Result<Vec<SampleRequest>> {
        let mut prompts = self.prompt.clone();
        if let Some(path) = &self.prompts {
            let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
            if size > PROMPTS_LIMIT {
                return Err(Error::Usage(format!(
                    "{} has {size} bytes, at most {PROMPTS_LIMIT} are read",
                    path.display()
                )));
            }
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            prompts.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from));
            if prompts.is_empty() {
                return Err(Error::Usage(format!("{} holds no prompt: write one a line", path.display())));
            }
        }
        let request = SampleRequest {
            prompt: String::new(),
            negative: self.negative.clone(),
            count: self.count,
            seed: self.seed,
            steps: self.steps,
            guidance: self.guidance,
            selection: self.selection()?,
            conversion: self.conversion.with(self.undamped)?,
            converted_below: self.converted_below,
            solver: match self.solver {
                SolverName::Euler => Solver::Euler,
                SolverName::Heun => Solver::Heun,
                SolverName::Multistep => Solver::Multistep,
            },
            shift: self.shift,
        };
        Ok(prompts.into_iter().map(|prompt| SampleRequest { prompt, ..request.clone() }).collect())
    }

    fn selection(&self) -> Result<ExpertSelection> {
        match (self.mode, self.k, self.threshold) {
            (Mode::Top1, None, None) => Ok(ExpertSelection::Top1),
            (Mode::Full, None, None) => Ok(ExpertSelection::Full),
            (Mode::Topk, Some(k), None) => Ok(ExpertSelection::TopK(k)),
            (Mode::Topk, None, None) => Ok(SampleRequest::default().selection),
            (Mode::Threshold, None, Some(time)) => Ok(ExpertSelection::Threshold { time, reversed: self.reversed }),
            (Mode::Threshold, None, None) => Err(Error::Usage("--mode threshold needs --threshold TIME".into())),
            (_, Some(_), _) => Err(Error::Usage("--k goes with --mode topk alone".into())),
            (_, None, Some(_)) => Err(Error::Usage("--threshold goes with --mode threshold alone".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use hdd_protocol::SampleLimits;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn requests(line: &str) -> Result<Vec<SampleRequest>> {
        let words = std::iter::once("sample").chain(line.split_whitespace());
        let requests = Line::try_parse_from(words).unwrap().args.requests()?;
        requests.iter().try_for_each(|request| request.check(&SampleLimits::default()))?;
        Ok(requests)
    }

    #[test]
    fn defaults_are_the_protocols() {
        let expected = SampleRequest { prompt: "cat".into(), ..SampleRequest::default() };
        assert_eq!(requests("--prompt cat").unwrap(), [expected]);
    }

    #[test]
    fn flags_become_the_request() {
        let check = |line: &str, expected: fn(&SampleRequest) -> bool| {
            assert!(expected(&requests(&format!("--prompt x {line}")).unwrap()[0]), "{line}");
        };
        check("--mode top1", |r| r.selection == ExpertSelection::Top1);
        check("--k 3", |r| r.selection == ExpertSelection::TopK(3));
        check("--mode threshold --threshold 0.5", |r| {
            r.selection == ExpertSelection::Threshold { time: 0.5, reversed: false }
        });
        check("--mode threshold --threshold 0.5 --reversed", |r| {
            r.selection == ExpertSelection::Threshold { time: 0.5, reversed: true }
        });
        check("--conversion paper", |r| r.conversion == Conversion::Paper { damping: true });
        check("--conversion paper --undamped", |r| r.conversion == Conversion::Paper { damping: false });
        check("--solver heun --converted-below 0.4 --negative ugly", |r| {
            r.solver == Solver::Heun && r.converted_below == Some(0.4) && r.negative == "ugly"
        });
        check("--solver multistep --shift 3", |r| r.solver == Solver::Multistep && r.shift == 3.0);
    }

    #[test]
    fn requests_that_cannot_be_say_what_is_wrong() {
        for (line, word) in [
            ("--mode top1 --k 2", "--mode topk"),
            ("--threshold 0.5", "--mode threshold"),
            ("--mode threshold", "needs --threshold"),
            ("--undamped", "--conversion paper"),
            ("--count 0", "count is 0"),
            ("--count 1000000", "count is 1000000"),
            ("--steps 1000000", "steps is 1000000"),
            ("--guidance nan", "guidance"),
            ("--shift 0", "shift is 0"),
            ("--seed 18446744073709551615", "seed"),
            ("--mode threshold --threshold 1.5", "threshold is 1.5"),
            ("--count 64 --steps 1000", "ask for fewer"),
            (&format!("--prompt {}", "x".repeat(1001)), "shorten it"),
        ] {
            let text = requests(&format!("--prompt x {line}")).unwrap_err().to_string();
            assert!(text.contains(word), "{line}: {text}");
        }
    }

    #[test]
    fn a_file_holds_a_prompt_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts");
        let line = format!("--prompts {}", path.display());
        std::fs::write(&path, "red apple\n\n  blue car \n").unwrap();
        let prompts: Vec<_> =
            requests(&format!("--prompt cat {line}")).unwrap().into_iter().map(|r| r.prompt).collect();
        assert_eq!(prompts, ["cat", "red apple", "blue car"]);
        std::fs::write(&path, "\n").unwrap();
        assert!(requests(&line).unwrap_err().to_string().contains("one a line"));
        std::fs::remove_file(&path).unwrap();
        assert!(requests(&line).unwrap_err().to_string().contains("prompts"));
    }
}
