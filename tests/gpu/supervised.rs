//! divvy's own supervisor (`divvy mps supervise`) in a state directory of the run's own, asked as `divvy serve` asks it.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::ground::Ground;
use super::mps::place::Place;
use super::mps::protocol::{Answer, Request, Status, VERSION, What};
use super::mps::settings::Settings;
use super::process::{spawn, until};

/// The program and what it preloads into the control daemon, which lies beside it where cargo builds both.
const DIVVY: &str = env!("CARGO_BIN_EXE_divvy");
const GUARD: &str = "libdivvy_mps_guard.so";
/// How long an answer may take: longer than a supervisor gives a server to start.
const ANSWER: Duration = Duration::from_secs(120);

/// A supervisor, until it is dropped.
#[derive(Debug)]
pub struct Supervised {
    child: Child,
    place: Place,
    program: PathBuf,
    state: PathBuf,
}

impl Supervised {
    /// Starts one for the device that is tried.
    pub fn start(ground: &Ground) -> Result<Self> {
        let divvy = std::env::var_os("DIVVY_GPU_PROGRAM").map_or_else(|| DIVVY.into(), PathBuf::from);
        // Root runs them: in a directory of root's alone, whoever built them.
        let own = ground.directory.join("divvy");
        fs::create_dir_all(&own)?;
        for file in [divvy.clone(), divvy.with_file_name(GUARD)] {
            let copy = own.join(file.file_name().context("a file without a name")?);
            fs::copy(&file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
            fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        }
        let program = own.join(divvy.file_name().context("a file without a name")?);
        // A short name: a pipe directory has 88 bytes.
        let state = ground.directory.join("s");
        let place = Place::new(&state, &ground.gpu.uuid);
        let child = supervise(ground, &program, &state)?;
        Ok(Self { child, place, program, state })
    }

    /// Kills it, and starts another in its place.
    pub fn start_again(&mut self, ground: &Ground) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = supervise(ground, &self.program, &self.state)?;
        Ok(())
    }

    /// Has MPS run with these limits, for root: the front directory.
    pub fn ensure(&self, ground: &Ground, memory_mib: u64, percentage: u32) -> Result<PathBuf> {
        let gpu = &ground.gpu;
        let settings = Settings {
            uuid: gpu.uuid.clone(),
            what: format!("GPU {}", gpu.index),
            gpu_uuid: gpu.gpu_uuid.clone(),
            is_mig: gpu.is_mig,
            active_thread_percentage: percentage,
            memory_mib,
            client_limit: 48,
            multi_user: ground.programs.multi_user.is_some(),
            at_boot: false,
            shared_memory_bytes: None,
            control: ground.programs.control.clone(),
            server: ground.programs.server.clone(),
            driver_root: "/".into(),
            driver_version: gpu.driver.clone(),
        };
        match self.ask(What::Ensure { settings: Box::new(settings), uid: 0, is_idle: true })? {
            Answer::Ready { front, .. } => Ok(front),
            Answer::Refused { message, .. } => bail!("{message}"),
            other => bail!("it answered {other:?}"),
        }
    }

    /// Has MPS end.
    pub fn stop(&mut self) -> Result<()> {
        match self.ask(What::Stop { force: false })? {
            Answer::Stopped => {}
            Answer::Refused { message, .. } => bail!("{message}"),
            other => bail!("it answered {other:?}"),
        }
        if !until(Duration::from_secs(30), || self.child.try_wait().is_ok_and(|status| status.is_some())) {
            bail!("the supervisor does not end");
        }
        Ok(())
    }

    /// How it is, by its own word.
    pub fn status(&self) -> Result<Status> {
        let text = fs::read_to_string(self.place.status()).context("it has not said how it is")?;
        serde_json::from_str(&text).context("its status is not readable")
    }

    /// Asks, as soon as it listens.
    fn ask(&self, what: What) -> Result<Answer> {
        let mut stream = None;
        until(Duration::from_secs(10), || {
            stream = UnixStream::connect(self.place.socket()).ok();
            stream.is_some()
        });
        let mut stream = stream.context("it does not listen")?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(&serde_json::to_vec(&Request { version: VERSION, what })?)?;
        stream.write_all(b"\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).context("it does not answer")?;
        serde_json::from_str(&line).with_context(|| format!("it answers {line:?}"))
    }
}

fn supervise(ground: &Ground, program: &Path, state: &Path) -> Result<Child> {
    let output = File::options().create(true).append(true).open(ground.directory.join("supervisor.log"))?;
    let mut command = Command::new(program);
    command.args(["mps", "supervise", &ground.gpu.uuid, "--state-dir"]).arg(state);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    spawn(&mut command)
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let _ = self.ask(What::Stop { force: true });
        if !until(Duration::from_secs(30), || self.child.try_wait().is_ok_and(|status| status.is_some())) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
