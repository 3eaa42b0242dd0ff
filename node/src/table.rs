//! Tables for people, and the words in them. Text that came from a peer passes [`printable`] first.

use crate::{Error, Result};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write as _};

/// A table with a header line, as wide as the terminal allows.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    table
}

/// `text` without what could move a terminal's cursor or reorder what it shows, at most 300 characters.
pub fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
    };
    text.chars().take(300).map(|c| if hidden(c) { '?' } else { c }).collect()
}

/// Bytes with a binary unit: `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// A count with a decimal unit above 9,999: `118.4 M`.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}

/// Shares, 0 to 1, in whole percents: `98 97 60 %`.
pub fn percentages(shares: &[f64]) -> String {
    let words: Vec<String> = shares.iter().map(|share| format!("{:.0}", 100.0 * share)).collect();
    format!("{} %", words.join(" "))
}

/// A length of time in its largest unit: `45 s`, `12 min`, `5 h`, `3 d`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Prints a result on standard output. A reader that has gone, as in `| head`, is no failure.
///
/// # Errors
/// [`Error::Io`] if standard output cannot be written.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("write to", "standard output")(error)),
        _ => Ok(()),
    }
}

/// Prints a result as JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_write_to_the_terminal() {
        let text = table(&["agent"], [vec!["\x1b[2Jevil\u{202e}\n".into()]]).to_string();
        assert!(text.contains("?[2Jevil??") && !text.contains('\x1b'), "{text}");
        assert_eq!(printable(&"x".repeat(1 << 20)).len(), 300);
    }

    #[test]
    fn units_change_where_they_should() {
        assert_eq!([count(9999), count(10_000), count(118_429_456)], ["9999", "10.0 k", "118.4 M"]);
        assert_eq!([duration(119), duration(120), duration(7200), duration(172_800)], ["119 s", "2 min", "2 h", "2 d"]);
    }
}
