//! Processes of `pd` that end with the test.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A folder that goes with the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pd-serve-{}-{number}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that serves.
pub(crate) struct Pd {
    child: Child,
    log: PathBuf,
    /// Host and port of its API.
    pub(crate) address: String,
    _folder: Folder,
}

impl Pd {
    /// Starts `pd` and waits until it is ready.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// The same, with variables.
    pub(crate) fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = Folder::new("log");
        let log = folder.0.join("log");
        let file = File::create(&log).expect("a log");
        let mut command = command(arguments);
        command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("pd starts");
        let mut pd = Self { child, log, address: String::new(), _folder: folder };
        let begin = Instant::now();
        loop {
            let log = pd.log();
            if log.contains("  ready ") || log.contains(" routes at http://") && log.ends_with('\n') {
                let after = log.split(" at http://").nth(1).expect("a banner names the address");
                pd.address = after.split_whitespace().next().expect("an address").to_owned();
                return pd;
            }
            if let Some(status) = pd.child.try_wait().expect("its own child") {
                panic!("pd {arguments:?} ended with {status}:\n{log}");
            }
            assert!(begin.elapsed() < PATIENCE, "pd {arguments:?} is not ready:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        File::open(&self.log).expect("a log").read_to_string(&mut text).expect("UTF-8");
        text
    }

    /// The word behind a word of its banner.
    pub(crate) fn banner(&self, behind: &str) -> String {
        let log = self.log();
        let rest = log.split(behind).nth(1).unwrap_or_else(|| panic!("no {behind:?} in:\n{log}"));
        rest.split_whitespace().next().expect("a word").trim_end_matches(',').to_owned()
    }

    /// As kill -9 and as the machine's end.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("its own child");
        self.child.wait().expect("its own child");
    }

    /// As SIGTERM; how it ended.
    pub(crate) fn terminate(self) -> (ExitStatus, String) {
        self.tell_to_end();
        self.end()
    }

    /// Sends SIGTERM.
    pub(crate) fn tell_to_end(&self) {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().expect("a shell's kill");
        assert!(status.success());
    }

    /// Waits until its log has this.
    pub(crate) fn says(&self, what: &str) {
        let begin = Instant::now();
        while !self.log().contains(what) {
            assert!(begin.elapsed() < PATIENCE, "no {what:?} in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end: how it was, and its log.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("its own child");
        let log = self.log();
        (status, log)
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `pd` without the variables of whoever runs the tests.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pd"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PD_") {
            command.env_remove(name);
        }
    }
    command
}

/// Longest wait for anything. Prompts of thousands of tokens take a minute without optimisation on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);
