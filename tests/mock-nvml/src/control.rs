//! The tests' controls: environment variables that say what to serve, what to break and what to write down. The
//! crate's doc lists them.

use std::env;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::types::{Answer, Return, UNKNOWN};

/// The controls of this process.
#[derive(Debug)]
pub struct Control {
    pub facts: Option<PathBuf>,
    pub processes: Option<PathBuf>,
    pub compute_modes: Option<PathBuf>,
    pub init_delay: Duration,
    failures: Vec<Failure>,
    log: Option<PathBuf>,
    log_calls: bool,
}

/// One item of MOCK_NVML_FAIL.
#[derive(Debug)]
struct Failure {
    function: String,
    gpu: Option<u32>,
    code: Return,
}

impl Control {
    /// Reads the environment at the first call of the process.
    pub fn get() -> Answer<&'static Self> {
        static CONTROL: OnceLock<Answer<Control>> = OnceLock::new();
        CONTROL
            .get_or_init(|| Self::from_env().map_err(|problem| refuse(&problem)))
            .as_ref()
            .map_err(|code| *code)
    }

    fn from_env() -> Result<Self, String> {
        let delay = text("MOCK_NVML_INIT_DELAY_MS")?
            .map(|n| n.parse().map_err(|_| format!("MOCK_NVML_INIT_DELAY_MS: {n:?} is not a number")))
            .transpose()?;
        Ok(Self {
            facts: path("MOCK_NVML_FACTS"),
            processes: path("MOCK_NVML_PROCESSES"),
            compute_modes: path("MOCK_NVML_COMPUTE_MODES"),
            init_delay: Duration::from_millis(delay.unwrap_or(0)),
            failures: Failure::list(&text("MOCK_NVML_FAIL")?.unwrap_or_default())?,
            log: path("MOCK_NVML_LOG"),
            log_calls: text("MOCK_NVML_LOG_CALLS")?.as_deref() == Some("1"),
        })
    }

    /// The code that a function shall answer: for all GPUs, or for the one given.
    pub fn check(&self, function: &str, gpu: Option<u32>) -> Answer {
        match self.failures.iter().find(|failure| failure.function == function && failure.gpu == gpu) {
            Some(failure) => Err(failure.code),
            None => Ok(()),
        }
    }

    /// Writes down a called function, where calls are wanted.
    pub fn log_call(&self, function: &str) {
        if self.log_calls {
            self.log(function);
        }
    }

    /// Writes a line down, where a log is wanted. One append: lines of several processes do not mix.
    pub fn log(&self, line: &str) {
        let Some(path) = &self.log else { return };
        let file = OpenOptions::new().create(true).append(true).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
            complain(&format!("{}: {error}", path.display()));
        }
    }
}

impl Failure {
    /// Parses `FUNCTION[@INDEX]=CODE,...`.
    fn list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Self::parse).collect()
    }

    fn parse(item: &str) -> Result<Self, String> {
        let bad = || format!("MOCK_NVML_FAIL: {item:?} is not FUNCTION[@INDEX]=CODE");
        let number = |digits: &str| digits.parse::<u32>().map_err(|_| bad());
        let (place, code) = item.split_once('=').ok_or_else(bad)?;
        let (function, gpu) = match place.split_once('@') {
            Some((function, index)) => (function, Some(number(index)?)),
            None => (place, None),
        };
        Ok(Self { function: function.to_owned(), gpu, code: number(code)? })
    }
}

/// Tells a test's mistake; the calling program sees NVML_ERROR_UNKNOWN.
pub fn refuse(problem: &str) -> Return {
    complain(problem);
    UNKNOWN
}

fn complain(problem: &str) {
    // Nothing is left to be done where standard error is closed.
    let _ = writeln!(std::io::stderr(), "mock-nvml: {problem}");
}

/// A variable set to nothing counts as not set.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    variable(name).map(PathBuf::from)
}

fn text(name: &str) -> Result<Option<String>, String> {
    variable(name).map(|value| value.into_string().map_err(|_| format!("{name} is not UTF-8"))).transpose()
}
