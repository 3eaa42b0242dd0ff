//! Logs: lines on standard error, fields apart from prose, so that standard output stays for results.

use tracing_subscriber::EnvFilter;

/// The filter for a verbosity: 0 warnings, 1 what happens, 2 details, 3 everything of this project's crates. Long-lived
/// roles begin at 1: they have no other way to say what they do. Kademlia's warning
/// of having no peers is left out: commands say it with its remedy.
pub fn filter(verbosity: u8, long_lived: bool) -> String {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbosity.saturating_add(long_lived.into()).min(3))];
    let crates = ["hdd_node", "hdd_registry", "hdd_expert_runtime", "hdd_router_service"];
    crates.iter().fold(String::from("warn,libp2p_kad=error"), |filter, name| format!("{filter},{name}={level}"))
}

/// Checks a filter that a person typed, such as `info` or `hdd_node::network=debug,warn`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.into()).map_err(|e| e.to_string())
}

/// Starts logging; the first call of a process counts.
pub fn init(filter: &str) {
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false);
    if subscriber.try_init().is_err() {
        tracing::debug!("logging was started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_use() {
        for verbosity in 0..=4 {
            parse_filter(&filter(verbosity, verbosity == 4)).unwrap();
        }
        assert!(filter(0, true).ends_with("=info"));
        assert!(parse_filter("hdd_node=loud").is_err());
    }
}
