//! Lets this crate's tests and examples find libtorch where it was linked.

fn main() {
    if let Ok(lib) = std::env::var("DEP_HDD_TORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
            // As in the node's: the benchmark then finds a card.
            println!("cargo:rustc-link-arg-examples=-Wl,--no-as-needed,-ltorch,--as-needed");
        }
    }
}
