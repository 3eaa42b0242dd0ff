//! Compiles the C++ beside libtorch, its shim and the kernels, and tells dependants where libtorch lies.

use std::{env, path::PathBuf};

fn main() {
    // Set by torch-sys, which found libtorch.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default());
    let include = lib.parent().map(|root| root.join("include")).unwrap_or_default();
    println!("cargo:rerun-if-changed=src/fused");
    cc::Build::new()
        .cpp(true)
        .warnings(false)
        .std("c++17")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(["src/fused/fused.cpp", "src/fused/kernels.cpp"])
        .opt_level(3)
        .flags(["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]) // for loops to become vectors
        .compile("hdd_fused");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:lib={}", lib.display());
}
