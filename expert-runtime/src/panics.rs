//! What becomes of a panic inside libtorch: one sentence, from the thread's owner.

use std::{any::Any, panic, thread};

/// Threads whose owners catch panics and report them.
const REPORTED: [&str; 3] = ["training", "device", "loader"];

/// One sentence on a caught panic. tch panics with libtorch's error, whose first line says it all; a C++ trace follows.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message");
    match text.split_once("Torch(\"") {
        // The error as `Debug` writes it: line ends and quotes are escaped.
        Some((_, error)) => first_line(error.trim_end_matches("\")")).replace("\\\"", "\""),
        None => first_line(text).to_owned(),
    }
}

/// The text before its first line end, written out or escaped.
fn first_line(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.split_once("\\n").map_or(line, |(line, _)| line)
}

/// From now on a panic on a thread whose owner reports it prints nothing by itself.
pub fn leave_panics_to_their_owners() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| match thread::current().name() {
        Some(name) if REPORTED.contains(&name) => tracing::debug!("{info}"),
        _ => usual(info),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_failure_of_libtorch_is_one_sentence() {
        let product = || Tensor::ones([2, 3], (Kind::Float, Device::Cpu)).matmul(&Tensor::from_slice(&[1.0f32; 4]));
        let panic = panic::catch_unwind(product).unwrap_err();
        let whole = panic.downcast_ref::<String>().unwrap();
        assert!(whole.contains("Torch(") && whole.len() > 500, "libtorch changed what it says: {whole}");
        assert_eq!(panic_message(&*panic), "size mismatch, got input (2), mat (2x3), vec (4)");
        let other = |text: &'static str| panic_message(&*panic::catch_unwind(|| panic::panic_any(text)).unwrap_err());
        assert_eq!(other("index 3 of 2\nand more"), "index 3 of 2");
        assert_eq!(other(r#"Err` value: Torch("no \"x\" here\nException raised from f\n")"#), r#"no "x" here"#);
    }

    #[test]
    fn panics_of_named_threads_are_silent() {
        static HEARD: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        let before = panic::take_hook();
        panic::set_hook(Box::new(|info| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            if info.payload_as_str() == Some("heard by a test") {
                HEARD.lock().unwrap().push(name);
            }
        }));
        leave_panics_to_their_owners();
        for name in ["training", "somebody", "loader"] {
            let work = || panic::panic_any("heard by a test");
            let _ = thread::Builder::new().name(name.into()).spawn(work).unwrap().join();
        }
        panic::set_hook(before);
        assert_eq!(*HEARD.lock().unwrap(), ["somebody"]);
    }
}
