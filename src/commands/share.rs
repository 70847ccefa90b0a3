//! `divvy share GPU`: writes the configuration for people who would rather not. The change is shown, and it is planned
//! on this machine before it is written: what the planner would leave out is refused here.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::list::full_name;
use super::{STDOUT, last_generated};
use crate::cli::ShareArgs;
use crate::config::edit::{self, Cut};
use crate::config::value::Match;
use crate::config::{self, Config, DEFAULT_PATH};
use crate::discover::host::Host;
use crate::discover::{self, Source};
use crate::failure::{Failure, Status, printable, say};
use crate::plan::{self, Kind, Plan, Problem, Unit};

/// Where the configuration is read and written.
struct File {
    /// None: a simulated or recorded host's own, which is not written.
    path: Option<PathBuf>,
    /// For messages.
    name: String,
    /// Empty where there is no file yet.
    text: String,
}

/// Runs the verb.
pub fn run(args: &ShareArgs, quiet: bool) -> Result<Status> {
    let source = args.machine.source()?;
    let file = File::open(args, &source)?;
    if file.path.is_none() && !args.dry_run {
        let what = anyhow::anyhow!("{} cannot be written", file.name);
        return Err(usage(what, "add --dry-run, or name a file with --config"));
    }
    let before = Config::parse(&file.name, &file.text).map_err(Failure::from)?;
    let device = Match::parse(&args.gpu)
        .map_err(|why| usage(anyhow::anyhow!(why), "`divvy list` shows what there is"))?;
    let (earlier, output) = last_generated(&source, None);
    let host = discover::discover(&source, &output)?;
    let covers = covers(&device, &args.gpu, &host, &before)?;

    let text = edit::share(&file.name, &file.text, &args.gpu, &covers, args.cut().as_ref())
        .map_err(Failure::from)?;
    let after = Config::parse(&file.name, &text).map_err(Failure::from)?;
    let old = plan::plan(&host, &before, &earlier, &output);
    // Names that move by this change are told, whatever `generate` has made of the last one.
    let new = plan::plan(&host, &after, &earlier.then(&old), &output);
    refuse_new_problems(&old, &new)?;

    let mut out = io::stdout().lock();
    for line in edit::difference(&file.name, &file.text, &text).lines() {
        writeln!(out, "{}", printable(line)).context(STDOUT)?;
    }
    if text == file.text {
        writeln!(out, "{} says so already", file.name).context(STDOUT)?;
        return Ok(Status::Done);
    }
    if !quiet {
        writeln!(out, "{}: {}", args.gpu, names(&device, &host, &new)).context(STDOUT)?;
        for warning in new.warnings.iter().filter(|warning| !old.warnings.contains(warning)) {
            say("warning", warning);
        }
    }
    let Some(path) = file.path.as_ref().filter(|_| !args.dry_run) else { return Ok(Status::Done) };
    write_config(path, &file.text, &text)?;
    if !quiet {
        say("note", format_args!("wrote {}; `divvy generate` puts it in force", path.display()));
    }
    Ok(Status::Done)
}

impl ShareArgs {
    fn cut(&self) -> Option<Cut> {
        (!self.none).then(|| Cut {
            mode: self.mode,
            replicas: self.replicas.unwrap_or(1),
            name: self.name.clone(),
            memory: self.memory.clone(),
            sm_percent: self.sm_percent,
            advisory: self.advisory,
        })
    }
}

impl File {
    fn open(args: &ShareArgs, source: &Source) -> Result<Self> {
        let path = match (&args.config, source) {
            (Some(path), _) => Some(path.clone()),
            (None, Source::Live(_)) => Some(DEFAULT_PATH.into()),
            (None, _) => None,
        };
        let Some(path) = path else {
            let own = source.config();
            let (name, text) = own.unwrap_or_else(|| ("the host's configuration".into(), String::new()));
            return Ok(Self { path, name, text });
        };
        let name = path.display().to_string();
        if config::is_yaml(&name) {
            let hint = "edit it by hand, or begin a config.toml of divvy's own";
            return Err(usage(
                anyhow::anyhow!("{name} is NVIDIA's form, which `divvy share` does not write"),
                hint,
            ));
        }
        let missing = path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let text = if missing { String::new() } else { config::read(&path)? };
        Ok(Self { path: Some(path), name, text })
    }
}

fn usage(error: anyhow::Error, hint: &str) -> anyhow::Error {
    Failure::new(error).hint(hint).status(Status::Usage).into()
}

/// Whether an entry of the configuration is about a device that the user means. Fails if the user means none.
fn covers(device: &Match, typed: &str, host: &Host, config: &Config) -> Result<impl Fn(&Match) -> bool> {
    let units = plan::units(host, config);
    let names: Vec<String> = units.iter().map(Unit::name).collect();
    let meant: Vec<Unit<'_>> = units.into_iter().filter(|unit| plan::covers(device, unit)).collect();
    if meant.is_empty() {
        let in_mig_mode = host.gpus.iter().any(|gpu| typed == gpu.index.to_string() || typed == gpu.uuid);
        let what = match in_mig_mode {
            true => format!("GPU {typed} is in MIG mode, and only its MIG devices can be shared"),
            false => format!("there is no {typed:?} on this machine"),
        };
        return Err(usage(anyhow::anyhow!(what), &format!("choose one of {}", names.join(", "))));
    }
    Ok(move |entry: &Match| meant.iter().any(|unit| plan::covers(entry, unit)))
}

/// What is already wrong is not this change's fault; what would become wrong is refused.
fn refuse_new_problems(old: &Plan, new: &Plan) -> Result<()> {
    // Lines move by the change itself, so places do not count.
    let mut known: Vec<_> = old.problems.iter().map(|problem| (&problem.what, &problem.why)).collect();
    let is_new = |problem: &&Problem| match known.iter().position(|it| *it == (&problem.what, &problem.why)) {
        Some(at) => {
            known.swap_remove(at);
            false
        }
        None => true,
    };
    let Some(problem) = new.problems.iter().find(is_new) else { return Ok(()) };
    let what = anyhow::anyhow!("this cannot be: {problem}");
    Err(Failure::new(what).hint(problem.hint.clone()).into())
}

/// What the device is called from now on.
fn names(device: &Match, host: &Host, plan: &Plan) -> String {
    let units = plan::units(host, &Config::default());
    let meant: Vec<&str> = units.iter().filter(|unit| plan::covers(device, unit)).map(Unit::uuid).collect();
    let of: Vec<_> = plan.devices.iter().filter(|planned| meant.contains(&planned.uuid.as_str())).collect();
    let shares: Vec<_> = of.iter().filter(|planned| planned.kind == Kind::Share).collect();
    match (&shares[..], &of[..]) {
        ([], []) => "no name of divvy's".into(),
        ([], _) => "whole".into(),
        ([one], _) => full_name(one),
        ([first, .., last], _) => format!("{} to {}", full_name(first), last.name),
    }
}

/// In one step, with the owner and mode that the file has; a link is followed to the file that the administrator keeps
/// elsewhere. What changed since it was read is not overwritten.
fn write_config(path: &Path, before: &str, after: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let dir = match real.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let write = || -> io::Result<()> {
        if !dir.exists() {
            fs::create_dir(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        let mut new = tempfile::Builder::new().prefix(".config.").tempfile_in(dir)?;
        new.write_all(after.as_bytes())?;
        match real.metadata() {
            Ok(old) => {
                std::os::unix::fs::fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
                new.as_file().set_permissions(old.permissions())?;
            }
            Err(_) => new.as_file().set_permissions(fs::Permissions::from_mode(0o644))?,
        }
        new.as_file().sync_all()?;
        let now = match fs::read_to_string(&real) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        if now != before {
            return Err(io::Error::other("somebody else changed it meanwhile: try again"));
        }
        new.persist(&real).map_err(|error| error.error)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "run as root, or name a file of your own with --config",
            io::ErrorKind::NotFound => "make the directory first",
            _ => "the file that was there is untouched",
        };
        Failure::new(anyhow::Error::new(error).context(cannot())).hint(hint).into()
    })
}
