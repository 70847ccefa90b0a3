//! Step 3, to disk: the specs of one plan, one file a kind, and the plan itself, for the next run and the hook. `divvy.json` holds the
//! kind nvidia.com/gpu, `divvy-<class>.json` beside it any other. What the earlier plan had and this one has not is
//! removed, if divvy wrote it. A plan is kept only where engines read the spec: a spec written anywhere else is for
//! somebody to look at, and must not make the running one stale.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::discover::others::{self, SPEC_DIRS, is_spec_file};
use crate::failure::{Failure, say};
use crate::plan::Plan;
use crate::plan::earlier::{self, Earlier};
use crate::plan::names::is_spec_file_of;

/// Where engines look, and where nvidia-ctk puts its own: cleared at boot, like the devices.
pub const DEFAULT_OUTPUT: &str = "/var/run/cdi/divvy.json";

/// Where divvy keeps what it knows of the running machine; cleared at boot.
pub const STATE_DIR: &str = "/run/divvy";

const STATE_HINT: &str = "run as root, choose another with --state-dir, or a spec of your own with --output";

pub const PLAN: &str = "plan.json";
const LOCK: &str = "generate.lock";
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// 16 GPUs of 1024 shares make some 3 MB.
const SPEC_LIMIT: u64 = 16 << 20;

/// And some 12 MB of plan.
const PLAN_LIMIT: u64 = 64 << 20;

/// The directory of divvy's state, and the right to change it while this value lives.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    /// Open and locked. Two runs at once would leave the specs of one beside the plan of the other.
    _lock: fs::File,
}

/// Where the state of this run is: where somebody says so, or for this machine where engines read the spec.
pub fn state_dir(given: Option<&Path>, output: &Path, is_this_machine: bool) -> Option<PathBuf> {
    match given {
        Some(dir) => Some(dir.to_path_buf()),
        None if !is_this_machine => None,
        None => is_engines(output).then(|| STATE_DIR.into()),
    }
}

/// Whether engines look there by themselves.
pub fn is_engines(output: &Path) -> bool {
    SPEC_DIRS.iter().any(|dir| output.parent() == Some(Path::new(dir)))
}

/// The absolute path, with its directory by the name that engines have for it: /run/cdi is /var/run/cdi by another.
pub fn by_engines_name(output: &Path) -> PathBuf {
    let output = std::path::absolute(output).unwrap_or_else(|_| output.to_path_buf());
    let (Some(dir), Some(name)) = (output.parent(), output.file_name()) else { return output };
    // A directory that is not there yet has its name by the one above it.
    let real = |dir: &Path| {
        let there = dir.ancestors().find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
        there.map_or_else(
            || dir.to_path_buf(),
            |(above, real)| real.join(dir.strip_prefix(above).unwrap_or(dir)),
        )
    };
    match SPEC_DIRS.iter().map(Path::new).find(|engine_dir| real(engine_dir) == real(dir)) {
        Some(engine_dir) => engine_dir.join(name),
        None => output,
    }
}

impl State {
    /// Makes the directory if there is none (its parent must be there) and waits up to ten seconds for another run.
    pub fn open(dir: &Path) -> Result<Self> {
        let cannot = || format!("cannot use the state directory {}", dir.display());
        make_directory(dir).with_context(cannot).map_err(|error| Failure::new(error).hint(STATE_HINT))?;
        let path = dir.join(LOCK);
        let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
        let open =
            fs::OpenOptions::new().write(true).create(true).mode(0o600).custom_flags(flags).open(&path);
        let lock = open.with_context(cannot).map_err(|error| Failure::new(error).hint(STATE_HINT))?;
        // Where others may write, one of them can have made it, and may hold it for ever.
        let owner = lock.metadata().with_context(cannot)?.uid();
        if owner != nix::unistd::geteuid().as_raw() {
            return Err(Failure::new(anyhow::anyhow!("{} belongs to user {owner}", path.display()))
                .hint("remove it, and keep the state where only you can write")
                .into());
        }
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { dir: dir.to_path_buf(), _lock: lock }),
                Err(fs::TryLockError::Error(error)) => return Err(error).with_context(cannot),
                Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(Failure::new(anyhow::anyhow!(
                        "another run of divvy holds {}",
                        path.display()
                    ))
                    .hint("wait for it, or see with `fuser` what it is")
                    .into());
                }
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// 0755 whatever the umask: unprivileged users may see what is shared.
fn make_directory(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(0o755)),
    }
}

/// Where the plan of a state directory lies, for the hook to compare a spec with: not through a link that may lead
/// elsewhere later. None if it has a name that cannot stand in a spec.
pub fn plan_path(state_dir: &Path) -> Option<PathBuf> {
    let dir = fs::canonicalize(state_dir).or_else(|_| std::path::absolute(state_dir)).ok()?;
    Some(dir.join(PLAN)).filter(|path| hooks::args::is_plain_path(path))
}

/// The plan's text, for those who only look.
///
/// # Errors
/// When there is none, and when it cannot be read.
pub fn plan_text(state_dir: &Path) -> io::Result<String> {
    read_regular(&state_dir.join(PLAN), PLAN_LIMIT)
}

/// The plan before this one; none where there is none. One that cannot be read costs the memory of names, not the run.
pub fn earlier(state_dir: &Path) -> Earlier {
    let path = state_dir.join(PLAN);
    let text = match plan_text(state_dir) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Earlier::default(),
        Err(error) => return no_earlier(&path, &error),
    };
    Earlier::parse(&text).unwrap_or_else(|error| no_earlier(&path, &error))
}

fn no_earlier(path: &Path, why: &dyn std::error::Error) -> Earlier {
    say("warning", format_args!("the earlier plan {} is not used: {why}", path.display()));
    say("hint", "names may mean other devices than before: compare with `divvy list`");
    Earlier::default()
}

/// A spec as it will be written.
#[derive(Debug)]
pub struct SpecFile {
    /// Its kind, as `nvidia.com/gpu`.
    pub kind: String,
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: String,
}

/// What became of a spec file.
#[derive(Debug)]
pub enum Done {
    /// It is new, or anew.
    Wrote(PathBuf),
    /// It said the same before.
    Unchanged(PathBuf),
    /// The plan has nothing for it.
    Removed(PathBuf),
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrote(path) => write!(f, "wrote {}", path.display()),
            Self::Unchanged(path) => write!(f, "unchanged: {}", path.display()),
            Self::Removed(path) => write!(f, "removed {}", path.display()),
        }
    }
}

/// Puts the specs of a plan in their places, `divvy.json` before the others, and then the plan. What is gone goes first:
/// at no time is a GPU whole in one file and shared in another, and whoever sees the new plan finds all of its specs.
/// Each file is whole at any time; a run that is killed in between leaves it to the next to make them agree.
pub fn publish(
    output: &Path,
    specs: &[SpecFile],
    plan: &Plan,
    driver_version: &str,
    earlier: &Earlier,
    state: Option<&State>,
) -> Result<Vec<Done>> {
    let paths: Vec<PathBuf> = specs.iter().map(|spec| spec.path.clone()).collect();
    // Before anything is written: a path that the plan cannot hold must not leave specs without a plan.
    let plan_text = state
        .map(|_| earlier::to_json(plan, driver_version, output, &paths))
        .transpose()
        .with_context(|| format!("cannot keep a plan for {}", output.display()))?;
    let prepare = |spec: &SpecFile| {
        cdi::prepare(&spec.path, spec.text.as_bytes()).map_err(|error| explain(error, &spec.path))
    };
    // Whatever a full disk or missing rights can spoil, before the first change.
    let prepared: Vec<cdi::Prepared> = specs.iter().map(prepare).collect::<Result<_>>()?;
    let mut done = Vec::new();
    for path in stale(output, &earlier.specs, &paths) {
        if remove(&path)? {
            done.push(Done::Removed(path));
        }
    }
    // A name that goes from one file to another, or a GPU that was shared in one and is whole in another, must not be
    // in both for a moment: the files after the first give way before it changes.
    for spec in prepared.iter().skip(1).filter(|spec| spec.will() == cdi::Written::Replaced) {
        remove(spec.path())?;
    }
    for prepared in prepared {
        let path = prepared.path().to_owned();
        let written = prepared.commit().map_err(|error| explain(error, &path))?;
        done.push(match written {
            cdi::Written::Created | cdi::Written::Replaced => Done::Wrote(path),
            cdi::Written::Unchanged => Done::Unchanged(path),
        });
    }
    if let (Some(state), Some(text)) = (state, plan_text) {
        let path = state.dir.join(PLAN);
        cdi::write(&path, text.as_bytes()).map_err(|error| explain(error, &path))?;
    }
    Ok(done)
}

/// Removes a spec; false if there was none.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove the outdated {}", path.display())),
        Ok(()) => Ok(true),
    }
}

fn explain(error: cdi::WriteError, path: &Path) -> anyhow::Error {
    match write_hint(&error, path) {
        Some(hint) => Failure::new(error).hint(hint).into(),
        None => error.into(),
    }
}

fn write_hint(error: &cdi::WriteError, path: &Path) -> Option<String> {
    use io::ErrorKind;
    let dir = path.parent().unwrap_or(Path::new("/")).display();
    if let cdi::WriteError::ParentMissing { .. } = error {
        return Some("make the directory first, or choose another with --output".into());
    }
    match error.io_kind()? {
        ErrorKind::PermissionDenied => Some("run as root, or choose a file of your own with --output".into()),
        ErrorKind::ReadOnlyFilesystem => {
            Some("choose a writable directory with --output; engines read /etc/cdi and /var/run/cdi".into())
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some(format!("free some space in {dir}; the file that was there is untouched"))
        }
        _ => None,
    }
}

/// Of what the earlier plan lists, and of what lies beside the output under the name that a spec of its kind gets, all
/// that divvy wrote.
fn stale(output: &Path, earlier: &[PathBuf], current: &[PathBuf]) -> Vec<PathBuf> {
    let beside = output.parent().and_then(|dir| fs::read_dir(dir).ok());
    let beside = beside.into_iter().flatten().flatten().map(|entry| entry.path());
    let mut stale: Vec<PathBuf> = beside.filter(|path| !current.contains(path)).collect();
    stale.sort();
    stale.retain(|path| {
        let kind = Some(path).filter(|path| is_spec_file(path)).and_then(|path| divvys_kind(path));
        kind.is_some_and(|kind| earlier.contains(path) || is_spec_file_of(output, path, &kind))
    });
    stale
}

/// The kind of a spec that divvy wrote. Whatever else stands there is read no further than a spec can be long.
fn divvys_kind(path: &Path) -> Option<String> {
    let text = read_regular(path, SPEC_LIMIT).ok()?;
    others::divvys_kind(&text)
}

/// A regular file's text; not through a link, and not of a FIFO, which would wait for its writer.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<String> {
    let flags = (nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOFOLLOW).bits();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = String::new();
    file.take(limit).read_to_string(&mut text)?;
    Ok(text)
}
