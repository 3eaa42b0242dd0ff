//! Starts real nodes as processes on loopback, each with a data folder, key and port of its own, and reads what they say.

use std::{
    fs::File,
    io::{Error, Result},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The binary under test: `HDD_NODE`, else the one beside the tests.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("HDD_NODE") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap_or_default(); // target/release/deps/journey-...
    test.ancestors().nth(2).unwrap_or(Path::new(".")).join("hdd-node")
}

/// The binary built without libtorch, where a full run of the checks made one; else the ordinary one.
pub fn light_binary() -> PathBuf {
    std::env::var_os("HDD_NODE_LIGHT").map_or_else(binary, PathBuf::from)
}

/// A command of the binary on the data folder `data`, on loopback, with one thread of libtorch.
pub fn command(binary: &Path, data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(args).arg("--data").arg(data).args(["--listen", "/ip4/127.0.0.1/tcp/0"]);
    command.env("HDD_THREADS", "1").env_remove("HDD_BOOTSTRAP").stdin(Stdio::null());
    command
}

/// Runs a command to its end.
///
/// # Errors
/// The system's if it cannot be started.
pub fn run(data: &Path, args: &[&str]) -> Result<Output> {
    command(&binary(), data, args).output()
}

/// A node that runs in the background; killed when dropped.
pub struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Starts `binary` with `args` on the data folder `data`; what it says goes to a file beside the folder.
    ///
    /// # Errors
    /// The system's if it cannot be started.
    pub fn start(binary: &Path, data: &Path, args: &[&str]) -> Result<Self> {
        let log = data.with_extension("log");
        let file = File::create(&log)?;
        let child = command(binary, data, args).stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Self { child, log })
    }

    /// All that it has said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said `text`, and returns the line.
    ///
    /// # Errors
    /// With all that it said, if it ends before or `patience` does.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait()?;
            let said = self.said();
            if let Some(line) = said.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if ended.is_some() || start.elapsed() > patience {
                return Err(Error::other(format!("'{text}' was never said ({ended:?}):\n{said}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The address that others join through.
    ///
    /// # Errors
    /// As [`Node::wait_for`].
    pub fn address(&mut self) -> Result<String> {
        let line = self.wait_for("--bootstrap /ip4/127.0.0.1", Duration::from_secs(20))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().to_owned())
    }

    /// Kills it at once (SIGKILL).
    ///
    /// # Errors
    /// The system's.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Asks it to stop (SIGTERM) and waits for its exit code.
    ///
    /// # Errors
    /// If it takes longer than 30 seconds.
    pub fn stop(mut self) -> Result<i32> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(Error::other(format!("it does not stop:\n{}", self.said())))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
