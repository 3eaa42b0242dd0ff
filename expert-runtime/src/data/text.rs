//! The text encoder that has no weights: words to vectors by hash.
//!
//! A word is a run of letters and digits in lower case. Its vector's entries are drawn from the word's BLAKE3 stream, each
//! the sum of twelve uniform 16-bit numbers less its mean: mean 0, variance 1, nearly normal (Irwin-Hall), and exact in integer
//! arithmetic, where logarithms and cosines differ between C libraries. So every node has the same vectors for ever.

use super::broken;
use crate::Result;
use hdd_protocol::{Text, TextEncoder};
use tch::{Device, Tensor};

const UNIFORMS: usize = 12;

/// Text tokens of `prompts` on `device`, `(B, L, W)`: word `l` of a prompt in slot `l`, zeros after the last.
///
/// Words beyond the charter's `length` are dropped.
///
/// # Errors
/// [`crate::Error::Data`] for an encoder that this build does not have; [`crate::Error::Torch`] for want of memory.
pub fn encode(text: &Text, prompts: &[impl AsRef<str>], device: Device) -> Result<Tensor> {
    if let TextEncoder::ClipText { weights } = text.encoder {
        return Err(broken(
            format!("text encoder clip-text ({})", weights.short()),
            "this build cannot run it; choose a charter whose encoder is hashed-words",
        ));
    }
    let (length, width) = (text.length as usize, text.width as usize);
    let mut tokens = vec![0f32; prompts.len() * length * width];
    for (b, prompt) in prompts.iter().enumerate() {
        for (l, word) in words(prompt.as_ref()).take(length).enumerate() {
            word_vector(&word, &mut tokens[(b * length + l) * width..][..width]);
        }
    }
    let shape = [prompts.len() as i64, length as i64, width as i64];
    Ok(Tensor::f_from_slice(&tokens)?.f_reshape(shape)?.f_to_device(device)?)
}

fn words(prompt: &str) -> impl Iterator<Item = String> {
    prompt.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

fn word_vector(word: &str, vector: &mut [f32]) {
    let mut stream = blake3::Hasher::new_derive_key("hdd-node hashed word").update(word.as_bytes()).finalize_xof();
    let mut bytes = [0; 2 * UNIFORMS];
    for entry in vector {
        stream.fill(&mut bytes);
        let sum: i32 = bytes.as_chunks::<2>().0.iter().map(|&b| i32::from(u16::from_le_bytes(b))).sum();
        let mean = UNIFORMS as i32 * 65_535 / 2;
        *entry = (sum - mean) as f32 / 65_536.0; // the variance of twelve is 1; a power of two divides exactly
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Text = Text { encoder: TextEncoder::HashedWords, width: 64, length: 8 };

    fn tokens(prompt: &str) -> Tensor {
        encode(&TEXT, &[prompt], Device::Cpu).unwrap().squeeze_dim(0)
    }

    #[test]
    fn golden_words() {
        let check = |word: &str, expected: [i32; 4]| {
            let mut vector = [0.0; 4];
            word_vector(word, &mut vector);
            assert_eq!(vector, expected.map(|n| n as f32 / 65_536.0), "{word}");
        };
        check("noto", [-93_499, -26_718, -36_291, -32_843]);
        check("\u{fc}berraschung", [-39_594, -73_644, -16_362, -48_733]);
    }

    #[test]
    fn words_are_runs_of_letters_and_digits_in_lower_case() {
        let check = |prompt: &str, expected: &[&str]| assert_eq!(words(prompt).collect::<Vec<_>>(), expected);
        check("  Kiss: woman,man ", &["kiss", "woman", "man"]);
        check("GRINNING-face_2", &["grinning", "face", "2"]);
        check("\u{c9}t\u{e9} \u{5bff}\u{53f8} \u{1f600}", &["\u{e9}t\u{e9}", "\u{5bff}\u{53f8}"]);
        check("Istanbul I", &["istanbul", "i"]); // dotted, wherever the machine stands
        check("!?", &[]);
    }

    #[test]
    fn slots_keep_the_order_and_the_rest_is_zero() {
        let (ab, ba) = (tokens("a b"), tokens("B, A!"));
        assert_eq!(ab.get(0), ba.get(1));
        assert_eq!(ab.get(1), ba.get(0));
        assert_ne!(ab.get(0), ab.get(1));
        assert_eq!(ab.narrow(0, 2, 6).abs().sum(tch::Kind::Float).double_value(&[]), 0.0);
        assert_eq!(tokens("").abs().sum(tch::Kind::Float).double_value(&[]), 0.0);
        assert_eq!(tokens("1 2 3 4 5 6 7 8"), tokens("1 2 3 4 5 6 7 8 9 10"), "words beyond the slots are dropped");
        assert_eq!(encode(&TEXT, &["a", "b", "c"], Device::Cpu).unwrap().size(), [3, 8, 64]);
    }

    #[test]
    fn entries_are_standard_normal() {
        let mut vector = vec![0.0; 100_000];
        word_vector("many", &mut vector);
        let moment = |n: i32| vector.iter().map(|&x| f64::from(x).powi(n)).sum::<f64>() / vector.len() as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.04 && (moment(4) - 2.9).abs() < 0.1, "{} {}", moment(3), moment(4));
    }

    #[test]
    fn an_encoder_with_weights_is_refused_by_name() {
        let encoder = TextEncoder::ClipText { weights: hdd_protocol::Digest::of(b"w") };
        let error = encode(&Text { encoder, ..TEXT }, &["a"], Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("clip-text"), "{error}");
    }
}
