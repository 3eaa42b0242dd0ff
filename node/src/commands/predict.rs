//! `hdd-node predict`: one network on given tensors, so that anyone can hold it against another implementation.

use super::{contribute::on_thread, names::ObjectiveName, sample::ConversionName};
use crate::{Error, Result, files, settings::Settings, table, torch::DeviceArgs};
use hdd_expert_runtime::{
    Condition, VAE_CLAMP, VelocityField as _,
    import::{self, Loaded},
    weights::{self, Named},
};
use hdd_protocol::{Architecture, Conversion};
use std::{collections::HashMap, path::PathBuf};
use tch::{Kind, Tensor};

/// Which network, on what.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "IN holds x (B, C, H, W), t (B) in [0, 1] and context (B, L, W). OUT gets prediction, the network's raw output \
                        at (x, t), and velocity, that of the linear path with x taken as its point, both shaped as x.\n\n\
                        Example:\n  hdd-node predict --checkpoint imports/dit --inputs in.safetensors --output out.safetensors"
)]
pub struct Args {
    /// Folder of a checkpoint or an import; or config.json and model.safetensors in the form of tests/golden
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Safetensors file with the inputs
    #[arg(long, value_name = "IN")]
    inputs: PathBuf,
    /// Safetensors file to write, in place of one that is there
    #[arg(long, value_name = "OUT")]
    output: PathBuf,
    /// What the network predicts, where its folder does not say [default: velocity]
    #[arg(long, value_enum)]
    objective: Option<ObjectiveName>,
    /// Use the learned null text instead of context
    #[arg(long)]
    null_text: bool,
    /// How the output becomes a velocity on the linear path
    #[arg(long, value_enum, default_value_t = ConversionName::Aligned)]
    conversion: ConversionName,
    /// With --conversion paper: leave out the damping of its Eq. 31
    #[arg(long)]
    undamped: bool,
    /// Predicted clean samples are clamped to plus or minus this, above 0
    #[arg(long, allow_negative_numbers = true, default_value_t = VAE_CLAMP)]
    clamp: f64,
    /// Where to compute
    #[command(flatten)]
    device: DeviceArgs,
}

/// Computes and writes.
///
/// # Errors
/// [`Error::Usage`] for flags or tensors that do not fit the network; what is wrong with the folder or the files.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    if !(args.clamp > 0.0 && args.clamp.is_finite()) {
        return Err(Error::Usage(format!("--clamp is {}, must be above 0", args.clamp)));
    }
    let conversion = args.conversion.with(args.undamped)?;
    files::check_target(&args.output)?;
    files::check_model(&args.checkpoint, files::EXPERT_FOLDER)?;
    let output = args.output.clone();
    let shape = on_thread(move || predict(&args, conversion)).await?;
    if settings.json {
        return table::print_json(&serde_json::json!({ "output": output, "shape": shape }));
    }
    table::print(&format!("{}: prediction and velocity, {shape:?}\n", output.display()))
}

fn predict(args: &Args, conversion: Conversion) -> Result<Vec<i64>> {
    args.device.apply();
    let _guard = tch::no_grad_guard();
    let Loaded { expert, has_null } =
        import::load(&args.checkpoint, args.objective.map(Into::into), args.device.device()?)?;
    if args.null_text && !has_null {
        return Err(Error::Usage(format!("{} holds no null text; leave --null-text out", args.checkpoint.display())));
    }
    let inputs = weights::read(&args.inputs)?;
    let (x, t, context) = arguments(args, &inputs, &expert.spec().architecture)?;
    let to_device = |x: Tensor| x.to_device(expert.device());
    let (x, context) = (to_device(x), context.map(to_device));
    let text = context.unwrap_or_else(|| expert.network().null_text(x.size()[0]));
    let prediction = expert.forward(&x, &t, &text);
    let condition = Condition { text: Some(text), guidance: None };
    let velocity = expert.field(conversion, args.clamp).velocity(&x, &t, &condition)?;
    let outputs = Named::from([("prediction".into(), prediction), ("velocity".into(), velocity)]);
    weights::write(&args.output, &outputs, HashMap::new())?;
    Ok(x.size())
}

/// The inputs in float32, checked: `x`, the times, and the text unless the null is asked for.
fn arguments(args: &Args, inputs: &Named, a: &Architecture) -> Result<(Tensor, Vec<f64>, Option<Tensor>)> {
    let wrong = |why: String| Error::Usage(format!("{}: {why}", args.inputs.display()));
    let input = |name: &str, rest: &[u32]| {
        let tensor = inputs.get(name).ok_or_else(|| wrong(format!("tensor {name} is missing")))?;
        let (size, rest): (_, Vec<i64>) = (tensor.size(), rest.iter().map(|&n| n.into()).collect());
        if size.len() != rest.len() + 1 || size[1..] != rest || size[0] == 0 {
            return Err(wrong(format!(
                "tensor {name} has shape {size:?}, the network asks for (B, ...) = (B, {rest:?})"
            )));
        }
        if !matches!(tensor.kind(), Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16) {
            return Err(wrong(format!("tensor {name} holds {:?}, expected floating-point numbers", tensor.kind())));
        }
        Ok(tensor)
    };
    let x = input("x", &[a.channels, a.size, a.size])?;
    let times = input("t", &[])?;
    let t = Vec::<f64>::try_from(times.to_kind(Kind::Double)).map_err(hdd_expert_runtime::Error::from)?;
    if let Some(t) = t.iter().find(|t| !(0.0..=1.0).contains(*t)) {
        return Err(wrong(format!("tensor t holds {t}, times lie in 0 to 1")));
    }
    let context = if args.null_text { None } else { Some(input("context", &[a.text_length, a.text_width])?) };
    let batch = x.size()[0];
    for (name, other) in [("t", Some(times)), ("context", context)] {
        if let Some(n) = other.map(|tensor| tensor.size()[0]).filter(|n| *n != batch) {
            return Err(wrong(format!("tensor {name} is for {n} images, x for {batch}")));
        }
    }
    Ok((x.to_kind(Kind::Float), t, context.map(|context| context.to_kind(Kind::Float))))
}
