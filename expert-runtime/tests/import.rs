//! Imported weights do what they did where they come from.
//!
//! The original DiT is written here once more, in its published form: AdaLN-Zero blocks whose modulation comes from the sum of
//! timestep and class embedding, the class averaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

mod pt;

use hdd_expert_runtime::{
    Expert,
    import::{self, Choice, Imported},
    network::position_embedding,
    normal, seeded,
    weights::{self, Named},
};
use hdd_protocol::{Architecture, ExpertSpec, Objective, Schedule, TimestepMap};
use std::{collections::HashMap, path::Path};
use tch::{Device, Kind, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const WIDTH: i64 = 32;
const DEPTH: i64 = 3;
const HEADS: i64 = 4;
const CLASSES: i64 = 10;
/// The time at which the modulation is exact.
const ANCHOR: f64 = 500.0;

fn choice() -> Choice {
    Choice {
        objective: None,
        schedule: None,
        timestep_map: None,
        cluster: Some(3),
        heads: Some(HEADS as u32),
        text: [6, 5],
        keep_final: false,
        seed: 7,
    }
}

/// A random DiT of 2x2 patches of 8x8x4 latents, every tensor alive.
fn tiny_dit() -> Named {
    seeded(11, draw_dit)
}

fn draw_dit() -> Named {
    let mut dit = Named::new();
    let mut layer = |name: &str, rows: i64, columns: i64| {
        dit.insert(format!("{name}.weight"), Tensor::randn([rows, columns], FLOAT) * 0.8 / (columns as f64).sqrt());
        dit.insert(format!("{name}.bias"), Tensor::randn([rows], FLOAT) * 0.1);
    };
    layer("t_embedder.mlp.0", WIDTH, 256);
    layer("t_embedder.mlp.2", WIDTH, WIDTH);
    for block in 0..DEPTH {
        let name = |part: &str| format!("blocks.{block}.{part}");
        layer(&name("attn.qkv"), 3 * WIDTH, WIDTH);
        layer(&name("attn.proj"), WIDTH, WIDTH);
        layer(&name("mlp.fc1"), 4 * WIDTH, WIDTH);
        layer(&name("mlp.fc2"), WIDTH, 4 * WIDTH);
        layer(&name("adaLN_modulation.1"), 6 * WIDTH, WIDTH);
    }
    layer("final_layer.linear", 2 * 2 * 8, WIDTH);
    layer("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH);
    dit.insert("x_embedder.proj.weight".into(), Tensor::randn([WIDTH, 4, 2, 2], FLOAT) * 0.25);
    dit.insert("x_embedder.proj.bias".into(), Tensor::randn([WIDTH], FLOAT) * 0.1);
    dit.insert("y_embedder.embedding_table".into(), Tensor::randn([CLASSES + 1, WIDTH], FLOAT));
    dit.insert("pos_embed".into(), position_embedding(WIDTH, 4));
    dit
}

fn save(tensors: &Named, path: &Path) {
    weights::write(path, tensors, HashMap::new()).unwrap();
}

/// The published DiT at its own time `t`: tokens after each block, and the noise that it predicts.
fn original(dit: &Named, x: &Tensor, t: f64) -> (Vec<Tensor>, Tensor) {
    let layer = |name: &str, x: &Tensor| x.linear(&dit[&format!("{name}.weight")], Some(&dit[&format!("{name}.bias")]));
    let norm = |x: &Tensor| x.layer_norm([WIDTH], None::<Tensor>, None::<Tensor>, 1e-6, true);
    let modulate = |x: &Tensor, shift: &Tensor, scale: &Tensor| norm(x) * (scale + 1.0) + shift;
    let frequencies = (Tensor::arange(128, FLOAT) * (-(10000f64.ln()) / 128.0)).exp() * t;
    let sinusoid = Tensor::cat(&[frequencies.cos(), frequencies.sin()], 0).unsqueeze(0);
    let time = layer("t_embedder.mlp.2", &layer("t_embedder.mlp.0", &sinusoid).silu());
    let class = dit["y_embedder.embedding_table"].narrow(0, 0, CLASSES).mean_dim([0i64].as_slice(), true, Kind::Float);
    let c = (time + class).silu(); // (1, D)
    let chunks = |name: &str, n| layer(name, &c).unsqueeze(1).chunk(n, -1);

    let patches =
        x.conv2d(&dit["x_embedder.proj.weight"], Some(&dit["x_embedder.proj.bias"]), [2, 2], [0, 0], [1, 1], 1);
    let mut h = patches.flatten(2, 3).transpose(1, 2) + &dit["pos_embed"];
    let (batch, tokens) = (h.size()[0], h.size()[1]);
    let mut blocks = Vec::new();
    for block in 0..DEPTH {
        let name = |part: &str| format!("blocks.{block}.{part}");
        let m = chunks(&name("adaLN_modulation.1"), 6);
        let qkv = layer(&name("attn.qkv"), &modulate(&h, &m[0], &m[1]));
        let qkv = qkv.reshape([batch, tokens, 3, HEADS, WIDTH / HEADS]).permute([2, 0, 3, 1, 4]);
        let scores = qkv.get(0).matmul(&qkv.get(1).transpose(-2, -1)) / ((WIDTH / HEADS) as f64).sqrt();
        let attended =
            scores.softmax(-1, Kind::Float).matmul(&qkv.get(2)).transpose(1, 2).reshape([batch, tokens, WIDTH]);
        h = &h + &m[2] * layer(&name("attn.proj"), &attended);
        let hidden = layer(&name("mlp.fc1"), &modulate(&h, &m[3], &m[4])).gelu("tanh");
        h = &h + &m[5] * layer(&name("mlp.fc2"), &hidden);
        blocks.push(h.shallow_clone());
    }
    let m = chunks("final_layer.adaLN_modulation.1", 2);
    let out = layer("final_layer.linear", &modulate(&h, &m[0], &m[1])); // (B, N, p p 2C)
    let out = out.reshape([batch, 4, 4, 2, 2, 8]).permute([0, 5, 1, 3, 2, 4]).reshape([batch, 8, 8, 8]);
    (blocks, out.narrow(1, 0, 4))
}

/// Tokens after each block of an expert at DiT's time `t`.
fn blocks(expert: &Expert, x: &Tensor, t: f64) -> Vec<Tensor> {
    let network = expert.network();
    let text = normal(&[x.size()[0], 5, 6], 21).unwrap();
    let (mut tokens, shared) = network.embed(x, &vec![t / 999.0; x.size()[0] as usize], &text);
    (0..network.depth())
        .map(|block| {
            tokens = network.block(block, &tokens, &shared);
            tokens.shallow_clone()
        })
        .collect()
}

fn error(got: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(got.size(), wanted.size());
    (got - wanted).abs().max().double_value(&[]) / wanted.abs().max().double_value(&[])
}

#[test]
fn an_imported_dit_gives_the_originals_block_outputs_at_500() {
    let _guard = tch::no_grad_guard();
    let folder = tempfile::tempdir().unwrap();
    let (dit, source) = (tiny_dit(), folder.path().join("dit.safetensors"));
    save(&dit, &source);
    let x = normal(&[2, 4, 8, 8], 22).unwrap();
    let Imported { expert, record } = import::from_dit(&source, &choice()).unwrap();
    let (wanted, _) = original(&dit, &x, ANCHOR);
    for (block, (got, wanted)) in blocks(&expert, &x, ANCHOR).iter().zip(&wanted).enumerate() {
        let error = error(got, wanted);
        assert!(error < 1e-5, "block {block} is off by {error:e}");
    }
    for t in [0.0, 250.0, 750.0, 999.0] {
        let got = blocks(&expert, &x, t);
        println!("t = {t}: the last block is off by {:.4}", error(&got[2], &original(&dit, &x, t).0[2]));
    }

    // The rest begins as in a fresh network.
    let fresh = Expert::new(expert.spec(), 7, Device::Cpu).unwrap().parameters();
    for (name, tensor) in expert.parameters() {
        let drawn = name.contains("cross_attn") || name.starts_with("final_layer") || name.contains("text_proj");
        assert_eq!(tensor == fresh[&name], drawn || name == "null_embedding" || is_constant(&tensor), "{name}");
    }
    let spec = expert.spec();
    assert_eq!((spec.objective, spec.schedule, spec.cluster), (Objective::Velocity, Schedule::Linear, 3));
    let a = &spec.architecture;
    assert_eq!([a.width, a.depth, a.patch, a.channels, a.size], [32, 3, 2, 4, 8]);
    assert!(record.kept.contains(&"blocks.*.attn.qkv.weight".to_owned()));
    assert!(record.fitted.contains(&"blocks.*.scale_shift_table".to_owned()));
    assert!(record.drawn.contains(&"final_layer.linear.weight".to_owned()));
    assert_eq!(record.parent.to_string(), blake3::hash(&std::fs::read(&source).unwrap()).to_hex().to_string());
    println!("modulation: {:?}", record.modulation);
}

fn is_constant(tensor: &Tensor) -> bool {
    tensor.max() == tensor.min()
}

#[test]
fn the_fit_is_the_best_of_those_that_are_exact_at_500() {
    let _guard = tch::no_grad_guard();
    let folder = tempfile::tempdir().unwrap();
    let (dit, source) = (tiny_dit(), folder.path().join("dit.safetensors"));
    save(&dit, &source);
    let Imported { expert, record } = import::from_dit(&source, &choice()).unwrap();
    let parameters = expert.parameters();
    let double = |t: &Tensor| t.to_kind(Kind::Double);
    let times = Tensor::arange(1000, FLOAT);
    let angles = times.unsqueeze(1) * (Tensor::arange(128, FLOAT) * (-(10000f64.ln()) / 128.0)).exp();
    let layer = |n: u8, x: &Tensor| {
        x.linear(&dit[&format!("t_embedder.mlp.{n}.weight")], Some(&dit[&format!("t_embedder.mlp.{n}.bias")]))
    };
    let e = double(&layer(2, &layer(0, &Tensor::cat(&[angles.cos(), angles.sin()], 1)).silu()));
    let class = double(&dit["y_embedder.embedding_table"]).narrow(0, 0, CLASSES).mean_dim(
        [0i64].as_slice(),
        false,
        Kind::Double,
    );
    let (own, theirs) = (e.silu(), (&e + class).silu());
    // Squared error over blocks and times of a weight, its tables made exact at 500.
    let loss = |weight: &Tensor| {
        let (mut difference, mut size) = (0.0, 0.0);
        for block in 0..DEPTH {
            let name = format!("blocks.{block}.adaLN_modulation.1");
            let wanted =
                theirs.matmul(&double(&dit[&format!("{name}.weight")]).transpose(0, 1)) + &dit[&format!("{name}.bias")];
            let got = own.matmul(&weight.transpose(0, 1));
            let got = &got + (wanted.get(500) - got.get(500));
            difference += (got - &wanted).square().sum(Kind::Double).double_value(&[]);
            size += wanted.square().sum(Kind::Double).double_value(&[]);
        }
        (difference / size).sqrt()
    };
    let best = double(&parameters["t_block.1.weight"]);
    let residual = record.modulation.unwrap();
    assert!((loss(&best) - residual.overall).abs() < 1e-5 * residual.overall, "{} {residual:?}", loss(&best));
    assert!(residual.at.iter().any(|&(t, share)| t == 500 && share < 1e-6), "{residual:?}");
    for seed in 0..20 {
        let other = &best + normal(&best.size(), seed).unwrap() * 0.01;
        assert!(loss(&other) > residual.overall, "seed {seed}");
    }
}

#[test]
fn a_kept_final_layer_predicts_the_originals_noise() {
    let _guard = tch::no_grad_guard();
    let folder = tempfile::tempdir().unwrap();
    let (dit, source) = (tiny_dit(), folder.path().join("dit.safetensors"));
    let nested = dit.iter().map(|(name, tensor)| (format!("ema.{name}"), tensor.shallow_clone())).collect();
    save(&nested, &source);
    let keep = Choice { keep_final: true, ..choice() };
    let Imported { expert, record } = import::from_dit(&source, &keep).unwrap();
    assert_eq!((expert.spec().objective, expert.spec().schedule), (Objective::Epsilon, Schedule::DDPM));
    let x = normal(&[2, 4, 8, 8], 22).unwrap();
    let text = normal(&[2, 5, 6], 23).unwrap();
    let at = |t: f64| error(&expert.forward(&x, &[t / 999.0; 2], &text), &original(&dit, &x, t).1);
    assert!(at(ANCHOR) < 1e-5, "{:e}", at(ANCHOR));
    println!("noise: off by {:.3} at 0, {:.3} at 999; final: {:?}", at(0.0), at(999.0), record.final_modulation);

    let wrong = Choice { objective: Some(Objective::Velocity), ..keep };
    assert!(import::from_dit(&source, &wrong).err().unwrap().to_string().contains("cannot be kept for velocity"));
}

#[test]
fn a_torch_file_gives_what_safetensors_give() {
    let folder = tempfile::tempdir().unwrap();
    let dit = tiny_dit();
    let (plain, torch) = (folder.path().join("dit.safetensors"), folder.path().join("dit.pt"));
    save(&dit, &plain);
    let wanted = import::from_dit(&plain, &choice()).unwrap().expert.parameters();
    for nested in [None, Some("ema")] {
        std::fs::write(&torch, pt::archive(&dit, nested)).unwrap();
        let got = import::from_dit(&torch, &choice()).unwrap().expert.parameters();
        assert_eq!(got, wanted, "{nested:?}");
    }

    let whole = pt::archive(&dit, None);
    for cut in (0..whole.len()).step_by(whole.len() / 20) {
        std::fs::write(&torch, &whole[..cut]).unwrap();
        import::from_dit(&torch, &choice()).err().unwrap();
    }
    std::fs::write(&torch, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.").unwrap();
    assert!(import::from_dit(&torch, &choice()).err().unwrap().to_string().contains("torch.save(torch.load"));
    let calls_something = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.";
    std::fs::write(&torch, pt::archive_of(calls_something, &dit)).unwrap();
    let error = import::from_dit(&torch, &choice()).err().unwrap().to_string();
    assert!(error.contains("pos_embed is missing"), "{error}"); // read as nothing at all, and not called
}

#[test]
fn wrong_sources_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("dit.safetensors");
    let refused = |change: &dyn Fn(&mut Named), choice: Choice| {
        let mut dit = tiny_dit();
        change(&mut dit);
        let _ = std::fs::remove_file(&source);
        save(&dit, &source);
        import::from_dit(&source, &choice).err().unwrap().to_string()
    };
    let replace = |name: &'static str, shape: &'static [i64]| {
        move |dit: &mut Named| drop(dit.insert(name.into(), Tensor::zeros(shape, FLOAT)))
    };
    for (word, error) in [
        ("blocks.1.attn.qkv.bias is missing", refused(&|d| drop(d.remove("blocks.1.attn.qkv.bias")), choice())),
        ("y_embedder.embedding_table is missing", refused(&|d| drop(d.remove("y_embedder.embedding_table")), choice())),
        ("blocks.2.mlp.fc1.weight has shape [3, 3]", refused(&replace("blocks.2.mlp.fc1.weight", &[3, 3]), choice())),
        (
            "adaLN_modulation.1.bias has shape [5]",
            refused(&replace("blocks.0.adaLN_modulation.1.bias", &[5]), choice()),
        ),
        ("pos_embed is off", refused(&replace("pos_embed", &[1, 16, 32]), choice())),
        ("pos_embed [1, 15, 32] does not fit", refused(&replace("pos_embed", &[1, 15, 32]), choice())),
        ("pos_embed [1, 0, 32] does not fit", refused(&replace("pos_embed", &[1, 0, 32]), choice())),
        (
            "does not fit the patch embedding [32, 4, 0, 0]",
            refused(&replace("x_embedder.proj.weight", &[32, 4, 0, 0]), choice()),
        ),
        ("tensor more belongs to no part", refused(&replace("more", &[1]), choice())),
        ("attention heads", refused(&|_| (), Choice { heads: None, ..choice() })),
        ("multiple of 5 heads", refused(&|_| (), Choice { heads: Some(5), ..choice() })),
        (
            "NaN",
            refused(
                &|d| drop(d.insert("x_embedder.proj.bias".into(), Tensor::full([WIDTH], f64::NAN, FLOAT))),
                choice(),
            ),
        ),
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn an_empty_projection_of_paris_and_a_misspelt_field_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, config) = (folder.path().join("weights.safetensors"), folder.path().join("config.json"));
    let name = "layers.0.cross_attn.in_proj_weight";
    save(&Named::from([(name.to_owned(), Tensor::zeros([0, 4], FLOAT))]), &weights);
    let error = import::from_paris(&weights, &choice()).err().unwrap().to_string();
    assert!(error.contains(name) && error.contains("0 rows"), "{error}");

    let fields =
        r#""depth": 1, "heads": 2, "patch": 2, "size": 8, "ch": 4, "ctx": 4, "ctx_len": 2, "cross_norm": true"#;
    for (json, field) in [
        (format!(r#"{{"d": 8, {fields}}}"#), "`eps`"),
        (format!(r#"{{"d": -8, "eps": 1e-6, {fields}}}"#), "`-8`"),
        (r#"{"spec": {"architecture": {"width": 8, "deep": 1}}}"#.to_owned(), "`deep`"),
    ] {
        std::fs::write(&config, json).unwrap();
        let error = import::load(folder.path(), None, Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

#[test]
fn an_import_is_a_folder_that_a_run_can_begin_from() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("dit.safetensors");
    save(&tiny_dit(), &source);
    let snr = Choice { timestep_map: Some(TimestepMap::Snr), ..choice() };
    let imported = import::from_dit(&source, &snr).unwrap();
    let out = folder.path().join("imports/dit");
    imported.save(&out).unwrap();
    assert!(imported.save(&out).unwrap_err().to_string().contains("exists already"));

    let beginning = import::open(&out).unwrap();
    assert_eq!(beginning.spec, *imported.expert.spec());
    assert_eq!((beginning.parent, beginning.cluster), (imported.record.parent, Some(3)));
    let record: import::Record = serde_json::from_slice(&std::fs::read(out.join("import.json")).unwrap()).unwrap();
    assert_eq!((record.parent, record.kept), (imported.record.parent, imported.record.kept.clone()));

    // Going on from it: everything but the final layer for another objective, everything for the same.
    let other = Choice { objective: Some(Objective::Epsilon), cluster: Some(1), ..choice() };
    let child = import::from_hdd(&beginning.model, &beginning.spec, &other).unwrap();
    let spec = child.expert.spec();
    assert_eq!((spec.schedule, spec.cluster, spec.timestep_map), (Schedule::Cosine, 1, TimestepMap::Snr));
    assert!(child.record.drawn.iter().all(|name| name.starts_with("final_layer.")), "{:?}", child.record.drawn);
    let same = Choice { cluster: None, timestep_map: None, ..choice() };
    let twin = import::from_hdd(&beginning.model, &beginning.spec, &same).unwrap();
    assert_eq!(twin.expert.spec(), &beginning.spec);
    assert_eq!(twin.expert.parameters(), imported.expert.parameters());
    assert_ne!(child.record.parent, imported.record.parent);
}

#[test]
fn snr_reads_the_noise_level_on_dits_clock() {
    let architecture = Architecture { size: 4, text_width: 4, text_length: 2, ..Architecture::new(8, 1, 2, 2) };
    let spec = |schedule, timestep_map| ExpertSpec {
        architecture: architecture.clone(),
        objective: Objective::Velocity,
        schedule,
        cluster: 0,
        timestep_map,
        preconditioning: None,
    };
    let read = |schedule, map, t: &[f64]| {
        let expert = Expert::new(&spec(schedule, map), 0, Device::Cpu).unwrap();
        expert.read_times(t).into_iter().map(|t| 999.0 * t).collect::<Vec<_>>()
    };
    let times = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0];
    let linear: Vec<f64> = read(Schedule::Linear, TimestepMap::Snr, &times).iter().map(|t| t.round()).collect();
    assert_eq!(linear, [0.0, 97.0, 258.0, 475.0, 658.0, 999.0]);
    let paper = read(Schedule::Linear, TimestepMap::Paper, &times);
    let own = read(Schedule::DDPM, TimestepMap::Snr, &times);
    for (paper, own) in paper.iter().zip(&own) {
        assert!((paper - own).abs() < 1e-6, "{paper} {own}");
    }
}
