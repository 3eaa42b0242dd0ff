//! `hdd-node encode`: what one pretrained encoder makes of one input, so that anyone can hold it against another
//! implementation.

use super::contribute::on_thread;
use crate::{Error, Result, files, settings::Settings, table, torch::DeviceArgs};
use clap::{Subcommand, ValueEnum};
use hdd_expert_runtime::{
    data,
    encoders::{ClipText, Dinov2, Family, Tokenizer, Vae, family},
    weights::{self, Named},
};
use std::{collections::HashMap, path::PathBuf};
use tch::{Device, Kind, Tensor};

/// Which encoder, on what.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Example:\n  hdd-node encode text --model clip-vit-large-patch14 --prompt 'a red car' --output out.safetensors"
)]
pub struct Args {
    #[command(subcommand)]
    input: Input,
}

#[derive(Debug, Clone, Subcommand)]
enum Input {
    /// Run a text encoder (CLIP) on captions
    #[command(
        after_help = "OUT gets input_ids (B, L), last_hidden_state (B, L, W), pooled (B, W) and, if the model has the projection to the space \
                            of images, projected (B, P), all but the ids in float32. IN holds input_ids (B, L) as 64-bit integers.\n\n\
                            Example:\n  hdd-node encode text --model clip-vit-large-patch14 --prompt 'a red car' --output out.safetensors"
    )]
    Text {
        /// Caption to encode; may be given several times
        #[arg(long, value_name = "TEXT", required_unless_present = "inputs", conflicts_with = "inputs")]
        prompt: Vec<String>,
        #[command(flatten)]
        model: ModelArgs,
    },
    /// Run an image encoder (DINOv2 or the autoencoder of Stable Diffusion) on images
    #[command(
        after_help = "Of DINOv2, OUT gets pixels (B, 3, H, W) as normalised for it, last_hidden_state (B, N, W) and cls (B, W); of an \
                            autoencoder, image (B, 3, H, W) in [-1, 1], latent_mean and latent_logvar (B, C, h, w), unscaled, and decoded (B, 3, H, W), \
                            made of the mean; all in float32. IN holds pixels or image, of any size.\n\n\
                            Example:\n  hdd-node encode image --model dinov2-large --size 224 --image cat.png --output out.safetensors"
    )]
    Image {
        /// PNG file to encode, cut to its centred square; may be given several times
        #[arg(long, value_name = "FILE", required_unless_present = "inputs", conflicts_with = "inputs")]
        image: Vec<PathBuf>,
        /// Pixels a side that images are scaled to [default: what the model was trained on]
        #[arg(long, value_name = "PIXELS", conflicts_with = "inputs", value_parser = clap::value_parser!(u32).range(1..=4096))]
        size: Option<u32>,
        #[command(flatten)]
        model: ModelArgs,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct ModelArgs {
    /// Folder of the model as Hugging Face publishes it: config.json, safetensors weights, and for texts the tokenizer
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Safetensors file with inputs that are prepared already
    #[arg(long, value_name = "IN")]
    inputs: Option<PathBuf>,
    /// Safetensors file to write, in place of one that is there
    #[arg(long, value_name = "OUT")]
    output: PathBuf,
    /// Numbers that the encoder computes in
    #[arg(long, value_enum, default_value_t = KindName::Float32)]
    precision: KindName,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindName {
    /// Single precision
    Float32,
    /// Half the memory, the range of float32
    Bf16,
    /// Half the memory, more digits than bf16; the range is too small for some autoencoders
    Fp16,
}

/// Computes and writes.
///
/// # Errors
/// [`Error::Usage`] for a folder of another encoder or inputs that are not there; what is wrong with the folder or the files.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    let (output, outputs) = on_thread(move || match args.input {
        Input::Text { prompt, model } => Ok((model.output.clone(), text(&prompt, &model)?)),
        Input::Image { image, size, model } => Ok((model.output.clone(), picture(&image, size, &model)?)),
    })
    .await?;
    let shapes: Vec<_> = outputs.iter().map(|(name, tensor)| (name, tensor.size())).collect();
    if settings.json {
        let shapes: serde_json::Map<_, _> =
            shapes.into_iter().map(|(name, size)| (name.clone(), size.into())).collect();
        return table::print_json(&serde_json::json!({ "output": output, "shapes": shapes }));
    }
    let shapes: Vec<String> = shapes.iter().map(|(name, size)| format!("{name} {size:?}")).collect();
    table::print(&format!("{}: {}\n", output.display(), shapes.join(", ")))
}

impl ModelArgs {
    /// Where and in what to compute, and whether the paths can be; must come before the first operation.
    fn place(&self) -> Result<(Device, Kind)> {
        files::check_target(&self.output)?;
        files::check_model(&self.model, "the folder of a model as Hugging Face publishes it")?;
        self.device.apply();
        let kind = match self.precision {
            KindName::Float32 => Kind::Float,
            KindName::Bf16 => Kind::BFloat16,
            KindName::Fp16 => Kind::Half,
        };
        Ok((self.device.device()?, kind))
    }

    /// The prepared input `name`, if a file of them is given.
    fn input(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(path) = &self.inputs else { return Ok(None) };
        let missing = || Error::Usage(format!("{}: tensor {name} is missing", path.display()));
        weights::read(path)?.remove(name).ok_or_else(missing).map(Some)
    }

    /// Writes outputs, floating-point ones in float32.
    fn save<const N: usize>(&self, outputs: [(&str, Option<Tensor>); N]) -> Result<Named> {
        let single = |tensor: Tensor| if tensor.kind() == Kind::Int64 { tensor } else { tensor.to_kind(Kind::Float) };
        let outputs =
            outputs.into_iter().filter_map(|(name, tensor)| Some((name.to_owned(), single(tensor?)))).collect();
        weights::write(&self.output, &outputs, HashMap::new())?;
        Ok(outputs)
    }
}

fn text(prompts: &[String], args: &ModelArgs) -> Result<Named> {
    let (device, kind) = args.place()?;
    if family(&args.model)? != Family::Clip {
        return Err(Error::Usage(format!(
            "{} holds no text encoder; see `hdd-node encode image`",
            args.model.display()
        )));
    }
    let clip = ClipText::open(&args.model, device, kind)?;
    let ids = match args.input("input_ids")? {
        Some(ids) => ids,
        None => Tokenizer::open(&args.model, clip.vocabulary(), clip.length())?.batch(prompts),
    };
    let states = clip.encode(&ids)?;
    args.save([
        ("input_ids", Some(ids)),
        ("last_hidden_state", Some(states.last_hidden_state)),
        ("pooled", Some(states.pooled)),
        ("projected", states.projected),
    ])
}

fn picture(files: &[PathBuf], size: Option<u32>, args: &ModelArgs) -> Result<Named> {
    let (device, kind) = args.place()?;
    let images = |own: i64| -> Result<Tensor> {
        let size = size.or_else(|| u32::try_from(own).ok()).unwrap_or_default();
        Ok(data::read_files(files, size)?.tensor(device)?)
    };
    match family(&args.model)? {
        Family::Clip => {
            Err(Error::Usage(format!("{} holds a text encoder; see `hdd-node encode text`", args.model.display())))
        }
        Family::Dinov2 => {
            let dino = Dinov2::open(&args.model, device, kind)?;
            let pixels = match args.input("pixels")? {
                Some(pixels) => pixels,
                None => Dinov2::normalise(&images(dino.image_size())?),
            };
            let tokens = dino.tokens(&pixels)?;
            let cls = tokens.select(1, 0);
            args.save([("pixels", Some(pixels)), ("last_hidden_state", Some(tokens)), ("cls", Some(cls))])
        }
        Family::Vae => {
            let vae = Vae::open(&args.model, device, kind)?;
            let image = match args.input("image")? {
                Some(image) => image,
                None => images(vae.sample_size())?,
            };
            let moments = vae.encode(&image)?;
            let decoded = vae.decode(&moments.mean)?;
            args.save([
                ("image", Some(image)),
                ("latent_mean", Some(moments.mean)),
                ("latent_logvar", Some(moments.logvar)),
                ("decoded", Some(decoded)),
            ])
        }
    }
}
