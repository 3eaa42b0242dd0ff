//! The router against an independent reference in PyTorch. `HDD_GOLDEN` points at another folder of the same form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{import, weights, weights::Named};
use hdd_protocol::RouterRecipe;
use hdd_router_service::Router;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use tch::Device;

#[test]
fn router_agrees_with_the_reference() {
    let _guard = tch::no_grad_guard();
    let root = std::env::var_os("HDD_GOLDEN")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")), PathBuf::from);
    let folder = root.join("router");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let recipe = RouterRecipe {
        width: number("d"),
        depth: number("depth"),
        heads: number("heads"),
        patch: number("patch"),
        text: false,
        ..RouterRecipe::default()
    };
    let mut router = Router::new(&recipe, [number("ch"), number("size")], 1, number("k") as u16, 0, Device::Cpu);
    let io = weights::read(&folder.join("io.safetensors")).unwrap();
    let t: Vec<f64> = Vec::try_from(io["t"].to_kind(tch::Kind::Double)).unwrap();
    let own = folder.join("weights.safetensors");
    let work = tempfile::tempdir().unwrap();
    for file in [&own, &imported(&own, work.path())] {
        router.read(file).unwrap();
        let got = router.logits(&io["x"], &t, None);
        let (scale, error) =
            (io["logits"].abs().max().double_value(&[]), (got - &io["logits"]).abs().max().double_value(&[]));
        assert!(error <= 1e-5 * scale, "{}: off by {error:e} of {scale:e}", file.display());
    }
}

/// The router once more, written with Paris's names and imported.
fn imported(own: &Path, work: &Path) -> PathBuf {
    let paris_name = |name: String| {
        let name = name.replace("x_embedder.proj.", "patch_embed.").replace("t_embedder.", "time_embed.");
        let name = name.replace("blocks.", "layers.").replace("attn.qkv.", "attn.in_proj_");
        name.replace("attn.proj.", "attn.out_proj.").replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.2.")
    };
    let paris: Named = weights::read(own).unwrap().into_iter().map(|(name, t)| (paris_name(name), t)).collect();
    assert!(paris.contains_key("layers.0.attn.in_proj_weight"));
    let (source, target) = (work.join("paris.safetensors"), work.join("router.safetensors"));
    weights::write(&source, &paris, HashMap::new()).unwrap();
    weights::write(&target, &import::paris_router(&source).unwrap(), HashMap::new()).unwrap();
    target
}

#[test]
fn the_papers_router_has_its_parameters() {
    let router = Router::new(&RouterRecipe::default(), [4, 32], 768, 8, 0, Device::Cpu);
    let count: usize = router.parameters().values().map(tch::Tensor::numel).sum();
    assert_eq!(count, 128_940_296);
}
