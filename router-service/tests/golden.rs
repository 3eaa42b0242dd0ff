//! The router against an independent reference in PyTorch. `HDD_GOLDEN` points at another folder of the same form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::weights;
use hdd_protocol::RouterRecipe;
use hdd_router_service::Router;
use std::path::PathBuf;
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
    router.read(&folder.join("weights.safetensors")).unwrap();
    let io = weights::read(&folder.join("io.safetensors")).unwrap();
    let t: Vec<f64> = Vec::try_from(io["t"].to_kind(tch::Kind::Double)).unwrap();
    let got = router.logits(&io["x"], &t, None);
    let (scale, error) =
        (io["logits"].abs().max().double_value(&[]), (got - &io["logits"]).abs().max().double_value(&[]));
    assert!(error <= 1e-5 * scale, "off by {error:e} of {scale:e}");
}

#[test]
fn the_papers_router_has_its_parameters() {
    let router = Router::new(&RouterRecipe::default(), [4, 32], 768, 8, 0, Device::Cpu);
    let count: usize = router.parameters().values().map(tch::Tensor::numel).sum();
    assert_eq!(count, 128_940_296);
}
