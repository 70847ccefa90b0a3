//! `nvidia-smi compute-policy`, as of drivers with CUDA 11.1 and newer. It ends with 0 when a length was set, and with
//! another status and a reason where the driver or the GPU knows none.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Wanted;
use crate::config::TimeSlice;
use crate::trust;

/// How long it may take: without persistence mode the driver starts the GPU first, which takes seconds.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes.
const ANSWER_LIMIT: u64 = 64 << 10;
/// How often is looked whether it has ended.
const TICK: Duration = Duration::from_millis(20);

/// Why a length is not known or not set, for a sentence that begins with the GPU.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It was not run.
    #[error("{program} is not run as root: {why}")]
    NotTrusted {
        /// The program.
        program: String,
        /// Who may change it.
        why: String,
    },
    /// It could not be run.
    #[error("{program} cannot be run: {why}")]
    NotRun {
        /// The program.
        program: String,
        /// The kernel's reason.
        why: String,
    },
    /// It did not end.
    #[error("nvidia-smi did not answer in {} s", LIMIT.as_secs())]
    TimedOut,
    /// It failed.
    #[error("the driver does not take it ({said})")]
    Failed {
        /// Its words.
        said: String,
    },
    /// It answered something else than a table of policies.
    #[error("nvidia-smi does not say what it is")]
    Unknown,
}

/// What the length is now.
pub fn read(gpu: &Wanted) -> Result<TimeSlice, Error> {
    parse(&run(gpu, &["--list"])?).ok_or(Error::Unknown)
}

/// Sets another length, and reads it back.
pub fn set(gpu: &Wanted, length: TimeSlice) -> Result<(), Error> {
    let number = match length {
        TimeSlice::Default => "0",
        TimeSlice::Short => "1",
        TimeSlice::Medium => "2",
        TimeSlice::Long => "3",
    };
    let said = run(gpu, &["--set-timeslice", number])?;
    match read(gpu)? {
        now if now == length => Ok(()),
        _ => Err(Error::Failed { said: reason(&said) }),
    }
}

fn run(gpu: &Wanted, options: &[&str]) -> Result<String, Error> {
    let program = gpu.program.display().to_string();
    if let Some(why) = trust::weakness(&gpu.program) {
        return Err(Error::NotTrusted { program, why });
    }
    let not_run = |error: std::io::Error| Error::NotRun { program: program.clone(), why: error.to_string() };
    let mut command = Command::new(&gpu.program);
    command.args(["compute-policy", "-i", &gpu.uuid]).args(options).current_dir("/").env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin").env("LC_ALL", "C");
    command.envs(gpu.libraries.iter().map(|libraries| ("LD_LIBRARY_PATH", libraries)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(not_run)?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(not_run)? {
            Some(status) => break status,
            None if began.elapsed() < LIMIT => sleep(TICK),
            None => {
                // One that the driver holds ends when the driver lets go; nobody waits for that.
                let _ = child.kill();
                return Err(Error::TimedOut);
            }
        }
    };
    let mut said = String::new();
    let outputs = [
        child.stdout.map(|pipe| Box::new(pipe) as Box<dyn Read>),
        child.stderr.map(|pipe| Box::new(pipe) as _),
    ];
    for output in outputs.into_iter().flatten() {
        let mut bytes = Vec::new();
        output.take(ANSWER_LIMIT).read_to_end(&mut bytes).map_err(not_run)?;
        said.push_str(&String::from_utf8_lossy(&bytes));
    }
    if status.success() { Ok(said) } else { Err(Error::Failed { said: reason(&said) }) }
}

/// The line that says why, of those that it prints.
fn reason(said: &str) -> String {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next_back();
    let failed = lines.find(|line| line.starts_with("Failed"));
    failed.or(last).unwrap_or("without a word").to_owned()
}

/// The length in the table of policies: `|   0     timeslice   Default   |`. There is one policy, so that its name does not
/// matter; a GPU that has none has no row.
fn parse(table: &str) -> Option<TimeSlice> {
    let rows = table.lines().filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'));
    rows.filter_map(|row| {
        let mut words = row.split_whitespace();
        words.next()?.parse::<u32>().ok()?;
        match words.next_back()?.to_ascii_lowercase().as_str() {
            "default" => Some(TimeSlice::Default),
            "short" => Some(TimeSlice::Short),
            "medium" => Some(TimeSlice::Medium),
            "long" => Some(TimeSlice::Long),
            _ => None,
        }
    })
    .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As drivers of branch 550 have it in nvidia-smi.
    const HEAD: &str = "+-------------------------------------+\n\
                        | GPU compute policies:               |\n\
                        | GPU     Name           Value        |\n\
                        |=====================================|\n";

    #[test]
    fn tables() {
        let table = |rows: &str| format!("{HEAD}{rows}+-------------------------------------+\n");
        for (rows, length) in [
            ("|   0     timeslice      Default      |\n", Some(TimeSlice::Default)),
            ("|   0     timeslice      Short        |\n", Some(TimeSlice::Short)),
            ("|  11     Timeslice      MEDIUM       |\n", Some(TimeSlice::Medium)),
            ("|   0     Time Slice     Long         |\n", Some(TimeSlice::Long)),
            ("|   0     timeslice      Eternal      |\n", None),
            ("|   0                                 |\n", None),
            ("", None),
        ] {
            assert_eq!(parse(&table(rows)), length, "{rows}");
        }
        for text in ["", "|", "||", "| short |", "0 timeslice Short", "| -1 timeslice Short |"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn reasons() {
        let not_supported = "Failed to set timeslice policy with value Short for GPU 0 : Not Supported\n\
                             Failed to set timeslice for requested devices : Not Supported\n";
        assert_eq!(
            reason(not_supported),
            "Failed to set timeslice policy with value Short for GPU 0 : Not Supported"
        );
        assert_eq!(reason("NVIDIA-SMI has failed\n\n"), "NVIDIA-SMI has failed");
        assert_eq!(reason(""), "without a word");
    }
}
