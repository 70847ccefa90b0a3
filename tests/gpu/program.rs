//! A client process (`client`), from the side of the check: started with an environment, as a user or in namespaces like
//! a container's, asked, and ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::client;
use super::ground::Ground;
use super::process::spawn;

/// How long an answer may take, if nothing else is said: a context on a large machine takes seconds.
const ANSWER: Duration = Duration::from_secs(30);
/// In place of a CUresult: there was no answer in time.
const NO_ANSWER: i32 = -2;
/// In place of a CUresult: the client ended before it answered.
const GONE: i32 = -3;

/// An answer: CUresult and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0 is success.
    pub code: i32,
    /// What the word asks for.
    pub numbers: Vec<u64>,
}

impl Answer {
    /// Success.
    pub fn is_done(&self) -> bool {
        self.code == 0
    }

    /// The first number, or the error in words.
    pub fn number(&self) -> Result<u64> {
        if self.code != 0 {
            bail!("{}", describe(self.code));
        }
        self.numbers.first().copied().context("an answer without a number")
    }
}

/// A CUresult for a person, by the names in cuda.h.
pub fn describe(code: i32) -> String {
    let name = match code {
        0 => return "works".into(),
        client::NO_LIBRARY => return "cannot load libcuda.so.1".into(),
        NO_ANSWER => return format!("does not answer in {} s", ANSWER.as_secs()),
        GONE => return "the program ended".into(),
        2 => "OUT_OF_MEMORY",
        46 => "DEVICE_UNAVAILABLE",
        100 => "NO_DEVICE",
        101 => "INVALID_DEVICE",
        201 => "INVALID_CONTEXT",
        304 => "OPERATING_SYSTEM",
        700 => "ILLEGAL_ADDRESS",
        702 => "LAUNCH_TIMEOUT",
        716 => "MISALIGNED_ADDRESS",
        719 => "LAUNCH_FAILED",
        800 => "NOT_PERMITTED",
        805 => "MPS_CONNECTION_FAILED",
        806 => "MPS_RPC_FAILURE",
        807 => "MPS_SERVER_NOT_READY",
        808 => "MPS_MAX_CLIENTS_REACHED",
        809 => "MPS_MAX_CONNECTIONS_REACHED",
        810 => "MPS_CLIENT_TERMINATED",
        _ => "see cuda.h",
    };
    format!("{code} {name}")
}

/// How a client is started.
#[derive(Clone, Debug, Default)]
pub struct Setup<'a> {
    /// CUDA_MPS_PIPE_DIRECTORY; none: it is not set.
    pub pipe: Option<&'a Path>,
    /// More of its environment.
    pub environment: &'a [(&'a str, &'a str)],
    /// A user other than root.
    pub uid: Option<u32>,
    /// Shell commands that are run first, as root in mount, pid and ipc namespaces of its own; `$1` and so on are
    /// `arguments`.
    pub inside: Option<(&'a str, &'a [&'a Path])>,
}

/// A client process, until it is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Program {
    /// Starts one that has done nothing yet.
    pub fn start(ground: &Ground, setup: &Setup<'_>) -> Result<Self> {
        let mut command = match setup.inside {
            None => {
                // What runs here already, whoever may reach its path.
                let mut command = Command::new("/proc/self/exe");
                command.arg(client::ARGUMENT);
                command
            }
            Some((script, arguments)) => {
                let program = std::env::current_exe().context("cannot find this program")?;
                let mut command = Command::new("unshare");
                command.args([
                    "--mount",
                    "--pid",
                    "--ipc",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "sh",
                    "-c",
                ]);
                // Opened before anything is mounted over it, and started again after each `end`.
                command.arg(format!(
                    "exec 3<\"$0\"; set -e; {script}; while /proc/self/fd/3 {}; do :; done",
                    client::ARGUMENT
                ));
                command.arg(program).args(arguments);
                command
            }
        };
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        command.envs(ground.library_path.iter().map(|path| ("LD_LIBRARY_PATH", path)));
        if !ground.is_alone {
            // One that misses MPS is not to land on somebody else's GPU. MPS takes a UUID too, but in a container there is
            // none, so that it is left out where it can be.
            command.env("CUDA_VISIBLE_DEVICES", &ground.gpu.uuid);
        }
        command.envs(setup.pipe.iter().map(|pipe| ("CUDA_MPS_PIPE_DIRECTORY", pipe)));
        command.envs(setup.environment.iter().copied());
        if let Some(uid) = setup.uid {
            command.uid(uid).gid(uid);
        }
        let complaints =
            File::options().create(true).append(true).open(ground.directory.join("clients.log"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints);
        let mut child = spawn(&mut command)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = (stdin.context("no input")?, stdout.context("no output")?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, stdin, answers })
    }

    /// Started, initialised and with a context; or the CUresult of what failed.
    pub fn ready(ground: &Ground, setup: &Setup<'_>) -> Result<Result<Self, i32>> {
        let mut program = Self::start(ground, setup)?;
        match program.outcome(&["init", "context"]) {
            0 => Ok(Ok(program)),
            code => Ok(Err(code)),
        }
    }

    /// As [`Program::ready`], where anything but success ends the check.
    pub fn expect_ready(ground: &Ground, setup: &Setup<'_>) -> Result<Self> {
        Self::ready(ground, setup)?
            .map_err(|code| anyhow::anyhow!("a client got no context: {}", describe(code)))
    }

    /// What it answers. None in time, or its end, is an error.
    pub fn ask(&mut self, line: &str) -> Result<Answer> {
        self.tell(line)?;
        self.answer(ANSWER)?.with_context(|| format!("a client did not answer to {line}"))
    }

    /// The first CUresult of these lines that is no success, 0 if all are; or what stands for one.
    pub fn outcome(&mut self, lines: &[&str]) -> i32 {
        for line in lines {
            let code = match self.tell(line).and_then(|()| self.answer(ANSWER)) {
                Ok(Some(answer)) => answer.code,
                Ok(None) => NO_ANSWER,
                Err(_) => GONE,
            };
            if code != 0 {
                return code;
            }
        }
        0
    }

    /// Says a line, whose answer is read later.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").with_context(|| format!("a client has ended before {line}"))
    }

    /// The next answer; none if it takes longer.
    pub fn answer(&mut self, limit: Duration) -> Result<Option<Answer>> {
        let line = match self.answers.recv_timeout(limit) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("a client has ended"),
        };
        let mut words = line.split_whitespace();
        let code = words.next().and_then(|word| word.parse().ok());
        let code = code.with_context(|| format!("a client said {line:?}"))?;
        Ok(Some(Answer { code, numbers: words.filter_map(|word| word.parse().ok()).collect() }))
    }

    /// What it can take up to so many MiB, as words; given back again.
    pub fn takes(&mut self, most: u64) -> Result<u64> {
        let taken = self.ask(&format!("take {most}"))?.number()?;
        self.ask("give-back")?;
        Ok(taken)
    }

    /// Its process, where it is in no namespace of its own.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It ends by itself with its input; MPS suffers from one that is killed at work.
        let _ = writeln!(self.stdin, "bye");
        if !super::process::until(Duration::from_secs(1), || self.child.try_wait().is_ok_and(|s| s.is_some()))
        {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
