//! Questions to a control daemon, through its own program: what that understands is documented, and the same in every
//! version. A daemon serves one peer at a time, so each question has a time limit.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// As long as an answer may take. The guard alone gives somebody who is silent a second and a half.
const LIMIT: Duration = Duration::from_secs(3);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The daemon is busy with somebody else, who may be at it for ever.
    #[error("the control daemon does not answer")]
    Silent,
    /// Nothing listens.
    #[error("there is no control daemon")]
    Nobody,
    /// The program cannot be run.
    #[error("nvidia-cuda-mps-control cannot be run")]
    Failed(#[from] io::Error),
}

/// The program, and the daemon that it is to speak to.
#[derive(Debug)]
pub struct Control {
    program: PathBuf,
    pipe: PathBuf,
}

impl Control {
    /// The daemon with this pipe directory.
    pub fn new(program: &Path, pipe: PathBuf) -> Self {
        Self { program: program.to_owned(), pipe }
    }

    /// Gives a command, and returns what was said to it.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub fn ask(&self, command: &str) -> Result<String, Unanswered> {
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("CUDA_MPS_PIPE_DIRECTORY", &self.pipe)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let answer = Self::converse(&mut child, command);
        // It is ended before its answer counts: what is left of it would hold the daemon up.
        let _ = child.kill();
        child.wait()?;
        answer
    }

    fn converse(child: &mut Child, command: &str) -> Result<String, Unanswered> {
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(format!("{command}\n").as_bytes()) {
                // Without a daemon it ends at once.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
                _ => {}
            }
        }
        let deadline = Instant::now() + LIMIT;
        let said = child.stdout.take().map(|out| read(out, deadline)).transpose()?.unwrap_or_default();
        let errors =
            child.stderr.take().map(|errors| read(errors, deadline)).transpose()?.unwrap_or_default();
        if errors.contains("Cannot find MPS control daemon") {
            return Err(Unanswered::Nobody);
        }
        Ok(said)
    }
}

/// All of it, until the other end closes.
fn read(mut from: impl Read + AsFd, deadline: Instant) -> Result<String, Unanswered> {
    let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let ready = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], timeout);
        if ready.map_err(io::Error::from)? == 0 {
            return Err(Unanswered::Silent);
        }
        match from.read(&mut chunk)? {
            0 => return Ok(String::from_utf8_lossy(&said).into_owned()),
            length => said.extend_from_slice(&chunk[..length]),
        }
    }
}
