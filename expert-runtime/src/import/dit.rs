//! facebookresearch DiT: class-conditioned, AdaLN-Zero, noise and variance from one final layer (Peebles and Xie, 2023).

use super::{
    Choice, Draft, Imported, Origin, depth_of, heads_of, modulation, need, shape_of, torch_file, usual_schedule,
};
use crate::{
    Error, Result,
    network::TimestepEmbed,
    weights::{self, Named},
};
use hdd_protocol::{Architecture, ExpertSpec, Objective, Schedule};
use std::{fs::File, io::Read as _, path::Path};
use tch::{Device, Kind, Tensor, nn};

/// DiT's table of classes ends with one for "no class", which is no part of the mean.
const NO_CLASS: i64 = 1;
/// How files of torch.save begin: today's, and the older ones, which are refused with advice.
const TORCH: [[u8; 4]; 2] = [*b"PK\x03\x04", [0x80, 0x02, 0x8a, 0x0a]];
/// What AdaLN-Single has no place for.
const REPLACED: [&str; 4] = ["y_embedder.", "adaLN_modulation.", "final_layer.", "pos_embed"];

/// An expert that begins from DiT (Eq. 20): attention, MLPs, patch and timestep embedding are kept, the modulation is fitted with
/// the mean class (see `modulation.rs`), cross-attention, text projection, null text and final layer are drawn.
///
/// `source` is a safetensors file or one of `torch.save`; names stand flat or under `ema`. With `keep_final` the final layer's
/// noise rows stay, which asks for the objective epsilon; the path is then DiT's own unless another is chosen.
///
/// # Errors
/// [`Error::Weights`] for another format, a missing or misshapen tensor, or a choice that cannot be.
pub fn from_dit(source: &Path, choice: &Choice) -> Result<Imported> {
    let tensors = read(source)?;
    let (spec, draft) = draft(&tensors, choice).map_err(|why| Error::Weights { path: source.to_owned(), why })?;
    drop(tensors);
    draft.build((Origin::Dit, source), &spec, choice)
}

/// The tensors under `ema` if there are any, else the flat ones.
fn read(source: &Path) -> Result<Named> {
    let mut magic = [0; 4];
    let known = File::open(source).and_then(|mut file| file.read_exact(&mut magic)).is_ok();
    let all = if known && TORCH.contains(&magic) {
        torch_file::read(source, |name| !name.starts_with("opt.") && !name.starts_with("model."))?
    } else {
        weights::read(source)?
    };
    let averaged: Named =
        all.iter().filter_map(|(name, t)| Some((name.strip_prefix("ema.")?.to_owned(), t.shallow_clone()))).collect();
    Ok(if averaged.is_empty() { all } else { averaged })
}

fn draft(tensors: &Named, choice: &Choice) -> Result<(ExpertSpec, Draft), String> {
    let position = need(tensors, "pos_embed", 3)?;
    let [width, channels, patch, size] = shape_of(need(tensors, "x_embedder.proj.weight", 4)?, position)?;
    let heads = heads_of(width, choice)?;
    let [text_width, text_length] = choice.text;
    let shape = Architecture::new(width, depth_of(tensors, "blocks."), heads, patch);
    let architecture = Architecture { channels, size, text_width, text_length, ..shape };
    let objective =
        choice.objective.unwrap_or(if choice.keep_final { Objective::Epsilon } else { Objective::Velocity });
    if choice.keep_final && objective != Objective::Epsilon {
        return Err(format!("its final layer predicts the noise; it cannot be kept for {objective}"));
    }
    let usual = || if choice.keep_final { Schedule::DDPM } else { usual_schedule(objective) };
    let spec = ExpertSpec {
        architecture,
        objective,
        schedule: choice.schedule.unwrap_or_else(usual),
        cluster: choice.cluster.unwrap_or(0),
        timestep_map: choice.timestep_map.unwrap_or_default(),
        preconditioning: None,
    };
    spec.check().map_err(|e| e.to_string())?;

    let mut draft =
        Draft { drawn: vec!["cross_attn.", "text_proj.", "null_embedding", "final_layer."], ..Draft::default() };
    for (name, tensor) in tensors {
        if !REPLACED.iter().any(|part| name.contains(part)) {
            draft.kept.insert(name.clone(), tensor.shallow_clone());
        }
    }
    fit(&mut draft, tensors, &spec, choice.keep_final)?;
    Ok((spec, draft))
}

/// The modulation, and with `keep_final` the final layer.
fn fit(draft: &mut Draft, tensors: &Named, spec: &ExpertSpec, keep_final: bool) -> Result<(), String> {
    let _guard = tch::no_grad_guard();
    let a = &spec.architecture;
    let [width, patch, channels] = [a.width, a.patch, a.channels].map(i64::from);
    let need_of = |name: &str, shape: &[i64]| {
        let tensor = need(tensors, name, shape.len())?;
        let fits = tensor.size() == shape;
        if fits { Ok(tensor) } else { Err(format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.size())) }
    };
    let e = modulation::embeddings(&timestep_embed(tensors, width)?);
    let classes = need(tensors, "y_embedder.embedding_table", 2)?;
    let classes = need_of("y_embedder.embedding_table", &[classes.size()[0].max(NO_CLASS + 1), width])?;
    let classes = classes.narrow(0, 0, classes.size()[0] - NO_CLASS);
    let y = classes.to_kind(Kind::Double).mean_dim([0i64].as_slice(), false, Kind::Double); // (D)

    let layers = (0..a.depth)
        .map(|block| {
            let part = |part: &str| format!("blocks.{block}.adaLN_modulation.1.{part}");
            let weight = need_of(&part("weight"), &[6 * width, width])?;
            Ok((weight.shallow_clone(), need_of(&part("bias"), &[6 * width])?.shallow_clone()))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let shared = modulation::share(&e, &y, &layers).map_err(|e| e.to_string())?;
    draft.fitted.insert("t_block.1.weight".into(), shared.weight);
    draft.fitted.insert("t_block.1.bias".into(), shared.bias);
    let tables = shared.tables.into_iter().enumerate();
    draft.fitted.extend(tables.map(|(block, table)| (format!("blocks.{block}.scale_shift_table"), table)));
    draft.modulation = Some(shared.residual);
    if !keep_final {
        return Ok(());
    }

    let weight = need(tensors, "final_layer.linear.weight", 2)?;
    let outputs = weight.size()[0];
    if outputs % (patch * patch) != 0 || outputs < patch * patch * channels {
        return Err(format!("its final layer has {outputs} rows, fewer than {channels} channels of a patch need"));
    }
    // Rows are ordered (row, column, channel); the noise comes before the variance.
    let noise =
        |t: &Tensor| t.reshape([patch * patch, outputs / (patch * patch), -1]).narrow(1, 0, channels).flatten(0, 1);
    let bias = need_of("final_layer.linear.bias", &[outputs])?;
    let matrix = need_of("final_layer.adaLN_modulation.1.weight", &[2 * width, width])?;
    let offset = need_of("final_layer.adaLN_modulation.1.bias", &[2 * width])?;
    let last = modulation::fold_final(
        &e,
        &y,
        (matrix, offset),
        &noise(need_of("final_layer.linear.weight", &[outputs, width])?),
    );
    draft.fitted.insert("final_layer.linear.weight".into(), last.weight);
    draft.fitted.insert("final_layer.scale_shift_table".into(), last.table);
    draft.kept.insert("final_layer.linear.bias".into(), noise(bias).flatten(0, -1));
    draft.final_modulation = Some(last.residual);
    Ok(())
}

/// The timestep embedding with the source's weights.
fn timestep_embed(tensors: &Named, width: i64) -> Result<TimestepEmbed, String> {
    let store = nn::VarStore::new(Device::Cpu);
    let embed = TimestepEmbed::new(&store.root(), width);
    for (name, target) in store.variables() {
        let name = format!("t_embedder.{name}");
        weights::copy(&name, need(tensors, &name, target.dim())?, &target)?;
    }
    Ok(embed)
}
