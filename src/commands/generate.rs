//! `divvy generate`: discover, plan, build the spec, write it in one step.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::debug;

use super::{STDOUT, list, print_problems, require_devices};
use crate::cli::{GenerateArgs, SpecFormat};
use crate::discover::{self, Source, create};
use crate::failure::{Failure, Status, say};
use crate::plan::{self, Plan};
use crate::spec;
use crate::trust;

/// Where engines look, and where nvidia-ctk puts its own: cleared at boot, like the devices.
const DEFAULT_OUTPUT: &str = "/var/run/cdi/divvy.json";

enum Output {
    Stdout,
    File(PathBuf),
}

/// Runs the verb.
pub fn run(args: &GenerateArgs, quiet: bool) -> Result<Status> {
    let output = output(args);
    let format = format(args, &output)?;
    let source = args.machine.source()?;
    let roots = args.machine.roots()?;
    let hook = hook_path(args.hook_path.as_deref(), matches!(source, Source::Sim(_)))?;

    let mut host = discover::discover(&source)?;
    if args.create_device_nodes {
        for made in create::missing_nodes(&mut host, &roots.dev)? {
            if !quiet {
                say("note", format_args!("made {made}"));
            }
        }
    }
    let plan = plan::plan(&host);
    for device in &plan.devices {
        let nodes: Vec<_> = device.nodes.iter().map(|node| node.path.display().to_string()).collect();
        debug!("device {} = {}: {}", device.name, device.uuid, nodes.join(" "));
    }
    print_problems(&plan, quiet);
    require_devices(&plan)?;

    let paths = spec::Paths { driver_root: &roots.driver, dev_root: &roots.dev, hook: &hook };
    let spec = spec::build(&plan, &host.driver_files, &paths)?;
    let contents = match format {
        SpecFormat::Json => spec.to_json(),
        SpecFormat::Yaml => yaml(&spec)?,
    };
    let status = if plan.problems.is_empty() { Status::Done } else { Status::Incomplete };
    match output {
        _ if args.dry_run => dry_run(&plan, &output, contents.len())?,
        Output::Stdout => std::io::stdout().write_all(contents.as_bytes()).context(STDOUT)?,
        Output::File(path) => {
            warn_of_weakness(&[&hook, &path]);
            let written = write(&path, &contents)?;
            if !quiet {
                // The spec is in place: whether somebody reads this changes nothing.
                let _ = writeln!(std::io::stdout(), "{}", summary(&path, &plan, written));
            }
        }
    }
    Ok(status)
}

/// Every string is quoted: to YAML 1.1 the name `0:1` is a number.
fn yaml(spec: &cdi::Spec) -> Result<String> {
    let options = serde_saphyr::ser_options! { quote_all: true };
    serde_saphyr::to_string_with_options(spec, options).context("write the spec as YAML")
}

/// A simulated host's spec belongs into the engines' directory only where somebody says so.
fn output(args: &GenerateArgs) -> Output {
    match &args.output {
        Some(path) if path == Path::new("-") => Output::Stdout,
        Some(path) => Output::File(path.clone()),
        None if args.machine.host.is_some() => Output::Stdout,
        None => Output::File(DEFAULT_OUTPUT.into()),
    }
}

fn format(args: &GenerateArgs, output: &Output) -> Result<SpecFormat> {
    let Output::File(path) = output else { return Ok(args.format.unwrap_or(SpecFormat::Json)) };
    let by_ending = match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => SpecFormat::Json,
        Some("yaml") => SpecFormat::Yaml,
        _ => {
            return Err(Failure::new(anyhow::anyhow!(
                "{} ends in neither .json nor .yaml, and engines read no other file",
                path.display()
            ))
            .hint("choose a name like divvy.json, or - for standard output")
            .status(Status::Usage)
            .into());
        }
    };
    match args.format {
        Some(SpecFormat::Yaml) if by_ending == SpecFormat::Json => {
            Err(Failure::new(anyhow::anyhow!("{} would hold YAML", path.display()))
                .hint("end the name in .yaml, or leave --format out")
                .status(Status::Usage)
                .into())
        }
        // JSON is YAML, so JSON may stand in a .yaml file.
        chosen => Ok(chosen.unwrap_or(by_ending)),
    }
}

/// The hook's absolute path. A spec that names a hook which is not there makes every start fail.
fn hook_path(given: Option<&Path>, simulated: bool) -> Result<PathBuf> {
    let path = match given {
        Some(path) => std::path::absolute(path)?,
        None => {
            let program = std::env::current_exe().context("find this program's own path")?;
            program.with_file_name("divvy-hook")
        }
    };
    let metadata = path.metadata();
    if metadata.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0) {
        return Ok(path);
    }
    if simulated && given.is_none() {
        return Ok("/usr/bin/divvy-hook".into());
    }
    Err(Failure::new(anyhow::anyhow!("there is no program at {}, where the hook should be", path.display()))
        .hint("install divvy-hook beside divvy, or name it with --hook-path")
        .into())
}

/// Engines run the hook as root, whatever user writes the spec: only root's own care for both can be asked for.
fn warn_of_weakness(paths: &[&Path]) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for weakness in paths.iter().filter_map(|path| trust::weakness(path)) {
        say("warning", format_args!("{weakness}: who changes it is root when the next container starts"));
        say("hint", "keep divvy-hook and the spec where only root can write, as `make install` does");
    }
}

fn write(path: &Path, contents: &str) -> Result<cdi::Written> {
    cdi::write(path, contents.as_bytes()).map_err(|error| match write_hint(&error, path) {
        Some(hint) => Failure::new(error).hint(hint).into(),
        None => error.into(),
    })
}

fn write_hint(error: &cdi::WriteError, path: &Path) -> Option<String> {
    use std::io::ErrorKind;
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

fn summary(path: &Path, plan: &Plan, written: cdi::Written) -> String {
    let verb = match written {
        cdi::Written::Created | cdi::Written::Replaced => "wrote",
        cdi::Written::Unchanged => "unchanged:",
    };
    let of = |kind| plan.devices.iter().filter(|device| device.kind == kind).count();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "{verb} {}: {}, {}",
        path.display(),
        count(of(plan::Kind::Gpu), "GPU"),
        count(of(plan::Kind::Mig), "MIG device")
    )
}

fn dry_run(plan: &Plan, output: &Output, bytes: usize) -> Result<()> {
    list::print_table(plan)?;
    let target = match output {
        Output::Stdout => "standard output".to_owned(),
        Output::File(path) => path.display().to_string(),
    };
    writeln!(std::io::stdout(), "\nwould write these devices, {bytes} bytes, to {target}").context(STDOUT)
}
