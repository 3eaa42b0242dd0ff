//! Lets this crate's tests find libtorch where it was linked.

fn main() {
    if let Ok(lib) = std::env::var("DEP_HDD_TORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
