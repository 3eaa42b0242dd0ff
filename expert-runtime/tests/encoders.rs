//! Encoders against `transformers` and `diffusers`, whose random models and outputs the golden folders hold.
//!
//! `HDD_GOLDEN` points these tests at another folder of the same form; shapes come from each case's `config.json`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    encoders::{ClipText, Dinov2, Family, Tokenizer, Vae, family},
    weights::{self, Named},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};
use tch::{Device::Cpu, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    tch::set_num_threads(1); // of each test: they run side by side
    let root = std::env::var_os("HDD_GOLDEN")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")), PathBuf::from);
    root.join(name)
}

fn case(name: &str) -> (PathBuf, Named) {
    let folder = golden(name);
    let io = weights::read(&folder.join("io.safetensors")).unwrap();
    (folder, io)
}

/// Largest difference, as a share of the largest wanted value.
fn assert_close(what: &str, got: &Tensor, wanted: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), wanted.size(), "{what}");
    let scale = wanted.abs().max().double_value(&[]);
    let error = (got - wanted).abs().max().double_value(&[]);
    println!("{what}: off by {error:e} of {scale:e}");
    assert!(error <= tolerance * scale, "{what}: off by {error:e} of {scale:e}");
}

/// Copies a golden folder, its weights under names and values that `change` chooses, its configuration edited by `edit`.
fn altered(
    name: &str,
    change: impl Fn(&str, &Tensor) -> (String, Tensor),
    edit: impl Fn(&mut serde_json::Value),
) -> tempfile::TempDir {
    let (source, copy) = (golden(name), tempfile::tempdir().unwrap());
    let mut config = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    let file = ["model.safetensors", "diffusion_pytorch_model.safetensors"]
        .into_iter()
        .find(|file| source.join(file).exists())
        .unwrap();
    let tensors = weights::read(&source.join(file)).unwrap();
    let tensors: Named = tensors.iter().map(|(name, tensor)| change(name, tensor)).collect();
    weights::write(&copy.path().join(file), &tensors, HashMap::new()).unwrap();
    copy
}

fn same(name: &str, tensor: &Tensor) -> (String, Tensor) {
    (name.to_owned(), tensor.shallow_clone())
}

#[test]
fn clip_agrees_with_transformers() {
    let (folder, io) = case("clip_text");
    assert_eq!(family(&folder).unwrap(), Family::Clip);
    let clip = ClipText::open(&folder, Cpu, Kind::Float).unwrap();
    let (ids, wanted) = (&io["input_ids"], &io["last_hidden_state"]);
    let states = clip.encode(ids).unwrap();
    assert_close("last_hidden_state", &states.last_hidden_state, wanted, 1e-4);
    for b in 0..ids.size()[0] {
        let ids = Vec::<i64>::try_from(ids.get(b)).unwrap();
        let end = ids.iter().position(|id| *id == clip.vocabulary() - 1).unwrap();
        assert_close("pooled", &states.pooled.get(b), &wanted.get(b).get(end as i64), 1e-4);
        let alone = clip.encode(&Tensor::from_slice(&ids[..=end]).unsqueeze(0)).unwrap();
        assert_close("text alone, not padded", &alone.pooled.squeeze_dim(0), &states.pooled.get(b), 1e-4);
    }
    assert!(states.projected.is_none());
}

#[test]
fn a_text_tower_is_found_inside_a_whole_clip() {
    let (_, io) = case("clip_text");
    let whole = altered(
        "clip_text",
        |name, tensor| (format!("text_model.{name}"), tensor.shallow_clone()),
        |config| *config = serde_json::json!({ "model_type": "clip", "text_config": config }),
    );
    let clip = ClipText::open(whole.path(), Cpu, Kind::Float).unwrap();
    let states = clip.encode(&io["input_ids"]).unwrap();
    assert_close("last_hidden_state", &states.last_hidden_state, &io["last_hidden_state"], 1e-4);
}

#[test]
fn dinov2_agrees_with_transformers_at_its_own_and_at_other_sizes() {
    // The CLS token of this case depends little on what precedes it: wrong heads move it by 2e-5 of it, rounding by 1e-7.
    const TOLERANCE: f64 = 1e-6;
    let (folder, io) = case("dinov2");
    assert_eq!(family(&folder).unwrap(), Family::Dinov2);
    let dino = Dinov2::open(&folder, Cpu, Kind::Float).unwrap();
    for (pixels, cls) in [("pixels", "cls"), ("pixels_larger", "cls_larger")] {
        assert_close(cls, &dino.cls(&io[pixels]).unwrap(), &io[cls], TOLERANCE);
        assert_close("first token", &dino.tokens(&io[pixels]).unwrap().select(1, 0), &io[cls], TOLERANCE);
    }
    let twice = dino.cls(&io["pixels"].repeat([2, 1, 1, 1])).unwrap();
    assert_close("in a batch", &twice, &io["cls"].repeat([2, 1]), TOLERANCE);
}

#[test]
fn the_autoencoder_agrees_with_diffusers() {
    let (folder, io) = case("vae");
    assert_eq!(family(&folder).unwrap(), Family::Vae);
    let first_names = altered(
        "vae",
        |name, tensor| {
            let renamed = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
                .iter()
                .fold(name.to_owned(), |name, (new, old)| name.replace(new, old));
            (renamed, tensor.shallow_clone())
        },
        |_| (),
    );
    for folder in [&folder, first_names.path()] {
        let vae = Vae::open(folder, Cpu, Kind::Float).unwrap();
        let moments = vae.encode(&io["image"]).unwrap();
        assert_close("latent_mean", &moments.mean, &io["latent_mean"], 1e-4);
        assert_close("latent_logvar", &moments.logvar, &io["latent_logvar"], 1e-4);
        assert_close("decoded", &vae.decode(&io["latent_mean"]).unwrap(), &io["decoded"], 1e-4);
        let config: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let scaled = vae.scale(&moments.mean);
        assert_close("scaled", &scaled, &(&moments.mean * config["scaling_factor"].as_f64().unwrap()), 1e-6);
        assert_close("unscaled", &vae.unscale(&scaled), &moments.mean, 1e-6);
    }
}

#[test]
fn bfloat16_stays_near_float32() {
    let kind = Kind::BFloat16;
    let (folder, io) = case("clip_text");
    let states = ClipText::open(&folder, Cpu, kind).unwrap().encode(&io["input_ids"]).unwrap();
    assert_eq!(states.last_hidden_state.kind(), kind);
    assert_close("clip", &states.last_hidden_state.to_kind(Kind::Float), &io["last_hidden_state"], 0.05);
    let (folder, io) = case("dinov2");
    let cls = Dinov2::open(&folder, Cpu, kind).unwrap().cls(&io["pixels_larger"]).unwrap();
    assert_close("dinov2", &cls.to_kind(Kind::Float), &io["cls_larger"], 0.05);
    let (folder, io) = case("vae");
    let mean = Vae::open(&folder, Cpu, kind).unwrap().encode(&io["image"]).unwrap().mean;
    assert_close("vae", &mean.to_kind(Kind::Float), &io["latent_mean"], 0.05);
}

#[test]
fn normalised_pixels_have_imagenets_moments() {
    let level = |value: f64| Tensor::from(value).reshape([1, 1, 1, 1]).repeat([1, 3, 2, 2]);
    let channels =
        |x: &Tensor| Vec::<f64>::try_from(Dinov2::normalise(x).select(3, 0).select(2, 0).reshape([3])).unwrap();
    let (black, white) = (channels(&level(-1.0)), channels(&level(1.0)));
    for (c, (mean, std)) in [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)].into_iter().enumerate() {
        assert!((black[c] + mean / std).abs() < 1e-12 && (white[c] - (1.0 - mean) / std).abs() < 1e-12);
    }
}

fn openai() -> Tokenizer {
    Tokenizer::open(Path::new("nowhere/text_encoder"), 49_408, 77).unwrap()
}

/// Texts whose ids, without start and end, a simpler tokenizer gets wrong: marks within the text or only nearly so, letters that
/// lower or compose to others, contractions, numerals. From `transformers`.
const TRICKY: [(&str, &[i64]); 8] = [
    ("a<|endoftext|>b", &[320, 49407, 321]),
    ("<|EndOfText|>'s", &[27, 347, 40786, 4160, 91, 285, 568]),
    ("a!<|EndOfText|>.b", &[320, 0, 27, 347, 40786, 4160, 91, 29, 269, 321]),
    ("ΟΔΟΣ İstanbul", &[138, 123, 138, 112, 138, 123, 139, 481, 328, 16384, 11231]),
    ("nai\u{308}ve", &[1097, 35689, 563]),
    (
        "x<start_of_text>y !<end_of_text>",
        &[343, 283, 1572, 318, 539, 318, 4160, 285, 344, 0, 283, 806, 318, 539, 318, 4160, 285],
    ),
    ("can't I'LL '90s", &[753, 713, 328, 1342, 262, 280, 271, 338]),
    ("１２３ ½ 10%", &[171, 120, 495, 171, 120, 496, 171, 120, 497, 33613, 272, 271, 260]),
];

#[test]
fn token_ids_are_transformers() {
    let text = fs::read_to_string(golden("clip_tokens.json")).unwrap();
    let wanted: BTreeMap<String, Vec<i64>> = serde_json::from_str(&text).unwrap();
    assert!(!wanted.is_empty());
    let tokenizer = openai();
    let prompts: Vec<&String> = wanted.keys().collect();
    let batch = tokenizer.batch(&prompts);
    assert_eq!((batch.size(), batch.kind()), (vec![wanted.len() as i64, 77], Kind::Int64));
    for (b, (prompt, ids)) in wanted.iter().enumerate() {
        assert_eq!(&tokenizer.encode(prompt), ids, "{prompt}");
        let mut padded = ids.clone();
        padded.resize(77, 49_407);
        assert_eq!(Vec::<i64>::try_from(batch.get(b as i64)).unwrap(), padded, "{prompt}");
    }
    for (text, ids) in TRICKY {
        assert_eq!(tokenizer.encode(text)[1..], [ids, &[49_407]].concat(), "{text}");
    }
}

#[test]
fn long_texts_keep_start_and_end() {
    let tokenizer = openai();
    for text in ["word ".repeat(100_000), "x".repeat(100_000), "!".repeat(100_000)] {
        let ids = tokenizer.encode(&text);
        assert_eq!((ids.len(), ids[0], ids[76]), (77, 49_406, 49_407));
    }
    assert_eq!(tokenizer.encode(&"word ".repeat(75)), tokenizer.encode(&"word ".repeat(76)));
}

/// A vocabulary of CLIP's numbering whose pairs make "ab", "ab" at a word's end, and "cab" there.
fn small_vocabulary(pairs: &[[&str; 2]]) -> HashMap<String, usize> {
    let printable = (33u8..=126).chain(161..=172).chain(174..=255).map(char::from);
    let others = (0..68).filter_map(|i| char::from_u32(256 + i));
    let bytes: Vec<char> = printable.chain(others).collect();
    let ends = bytes.iter().map(|c| format!("{c}</w>"));
    let merged = pairs.iter().map(|pair| pair.concat());
    let marks = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
    bytes.iter().map(char::to_string).chain(ends).chain(merged).chain(marks).zip(0..).collect()
}

#[test]
fn a_folders_own_vocabulary_is_used_in_either_form() {
    let pairs = [["a", "b"], ["a", "b</w>"], ["c", "ab</w>"]];
    let ids = small_vocabulary(&pairs);
    let pipeline = tempfile::tempdir().unwrap();
    let [model, beside] = ["text_encoder", "tokenizer"].map(|name| pipeline.path().join(name));
    fs::create_dir_all(&model).unwrap();
    fs::create_dir_all(&beside).unwrap();
    let open = || Tokenizer::open(&model, 517, 8);
    let missing = open().unwrap_err().to_string();
    assert!(missing.contains("vocab.json and merges.txt, or tokenizer.json"), "{missing}");

    let lines: Vec<String> = pairs.iter().map(|pair| pair.join(" ")).collect();
    for merges in [serde_json::json!(lines), serde_json::json!(pairs)] {
        let whole = serde_json::json!({ "model": { "vocab": &ids, "merges": merges } });
        fs::write(beside.join("tokenizer.json"), whole.to_string()).unwrap();
        assert_eq!(open().unwrap().encode("ab CAB"), [515, 513, 514, 516]);
    }
    fs::write(model.join("vocab.json"), serde_json::to_string(&ids).unwrap()).unwrap();
    fs::write(model.join("merges.txt"), format!("#version: 0.2\n{}\n", lines.join("\n"))).unwrap();
    fs::write(model.join("special_tokens_map.json"), r#"{"pad_token": {"content": "!"}}"#).unwrap();
    let padded = Vec::<i64>::try_from(open().unwrap().batch(&["ab cab"]).get(0)).unwrap();
    assert_eq!(padded, [515, 513, 514, 516, 0, 0, 0, 0]);

    let other_size = Tokenizer::open(&model, 600, 8).unwrap_err().to_string();
    assert!(other_size.contains("517 tokens, the model knows 600"), "{other_size}");
    let swapped: HashMap<&str, usize> = ids
        .iter()
        .map(|(token, id)| {
            (
                token.as_str(),
                match id {
                    512 => 513,
                    513 => 512,
                    id => *id,
                },
            )
        })
        .collect();
    fs::write(model.join("vocab.json"), serde_json::to_string(&swapped).unwrap()).unwrap();
    assert!(open().unwrap_err().to_string().contains("otherwise than CLIP"));
}

#[test]
fn folders_that_do_not_fit_are_refused_with_the_reason() {
    let nothing = |_: &mut serde_json::Value| ();
    let set =
        |key: &'static str, value: serde_json::Value| move |config: &mut serde_json::Value| config[key] = value.clone();
    let clip = |edit: &dyn Fn(&mut serde_json::Value)| {
        let folder = altered("clip_text", same, edit);
        ClipText::open(folder.path(), Cpu, Kind::Float).unwrap_err().to_string()
    };
    let dino = |edit: &dyn Fn(&mut serde_json::Value)| {
        let folder = altered("dinov2", same, edit);
        Dinov2::open(folder.path(), Cpu, Kind::Float).unwrap_err().to_string()
    };
    let vae = |edit: &dyn Fn(&mut serde_json::Value)| {
        let folder = altered("vae", same, edit);
        Vae::open(folder.path(), Cpu, Kind::Float).unwrap_err().to_string()
    };
    for (message, word) in [
        (clip(&set("num_attention_heads", 0.into())), "heads"),
        (clip(&set("num_hidden_layers", 1.into())), "belongs to no part"),
        (clip(&set("num_hidden_layers", 1_000_000.into())), "is missing"),
        (clip(&set("vocab_size", 1_000_000_000_000i64.into())), "config.json asks for"),
        (clip(&set("hidden_act", "relu".into())), "relu"),
        (dino(&set("patch_size", 0.into())), "out of range"),
        (dino(&set("image_size", i64::MAX.into())), "out of range"),
        (dino(&set("mlp_ratio", 1e300.into())), "config.json asks for"),
        (vae(&set("norm_num_groups", 5.into())), "divide"),
        (vae(&set("act_fn", "gelu".into())), "gelu"),
        (vae(&set("latents_mean", serde_json::json!([0.0]))), "latent channel"),
        (vae(&set("use_quant_conv", false.into())), "belongs to no part"),
    ] {
        assert!(message.contains(word), "{message}");
    }
    let wild = altered("dinov2", |name, tensor| (name.to_owned(), tensor / 0.0), nothing);
    assert!(Dinov2::open(wild.path(), Cpu, Kind::Float).unwrap_err().to_string().contains("NaN"));
    let empty = altered("vae", same, set("_class_name", "AutoencoderTiny".into()));
    assert!(family(empty.path()).unwrap_err().to_string().contains("AutoencoderTiny"));
    fs::remove_file(empty.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    assert!(Vae::open(empty.path(), Cpu, Kind::Float).unwrap_err().to_string().contains("holds neither"));
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let clip = ClipText::open(&golden("clip_text"), Cpu, Kind::Float).unwrap();
    let ids = |values: &[i64]| Tensor::from_slice(values).unsqueeze(0);
    for bad in [
        ids(&[0, clip.vocabulary()]),
        ids(&[-1, 0]),
        ids(&vec![0; clip.length() as usize + 1]),
        ids(&[]),
        Tensor::from_slice(&[0i64]),
        ids(&[0]).to_kind(Kind::Float),
    ] {
        assert!(clip.encode(&bad).is_err(), "{:?}", bad.size());
    }
    let dino = Dinov2::open(&golden("dinov2"), Cpu, Kind::Float).unwrap();
    let vae = Vae::open(&golden("vae"), Cpu, Kind::Float).unwrap();
    let image = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Cpu));
    for shape in [&[1, 3, 2, 70][..], &[1, 1, 70, 70], &[3, 70, 70], &[0, 3, 70, 70]] {
        assert!(dino.cls(&image(shape)).is_err() && vae.encode(&image(shape)).is_err(), "{shape:?}");
    }
    assert!(dino.cls(&image(&[1, 3, 70, 70]).to_kind(Kind::Uint8)).is_err());
    assert!(vae.decode(&image(&[1, 3, 8, 8])).is_err());
}
