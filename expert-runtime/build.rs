//! Compiles the C++ shim over libtorch's fused kernels and tells dependants where libtorch lies.

use std::{env, path::PathBuf};

fn main() {
    // Set by torch-sys, which found libtorch.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default());
    let include = lib.parent().map(|root| root.join("include")).unwrap_or_default();
    println!("cargo:rerun-if-changed=src/fused/fused.cpp");
    cc::Build::new()
        .cpp(true)
        .warnings(false)
        .std("c++17")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/fused/fused.cpp")
        .compile("hdd_fused");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:lib={}", lib.display());
}
