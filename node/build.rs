//! Lets the binary find libtorch where it was linked.

fn main() {
    let Ok(lib) = std::env::var("DEP_HDD_TORCH_LIB") else { return }; // built without the feature `torch`
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // Names libtorch.so even where no symbol asks for it: with a CUDA libtorch first on the library path, the
        // same binary then loads CUDA.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch,--as-needed");
    }
}
