//! `divvy generate`: discover, plan, build the specs, write them and the plan.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::stat::SFlag;
use tracing::debug;

use super::{Planned, STDOUT, counts, list, print_problems, require_devices, users};
use crate::cli::{GenerateArgs, SpecFormat};
use crate::discover::Source;
use crate::discover::host::Host;
use crate::engines;
use crate::failure::{Failure, Status, printable, say};
use crate::held::{self, Leases};
use crate::plan::moved::{self, Held};
use crate::plan::names::spec_file;
use crate::plan::{self, Plan};
use crate::publish::{self, SpecFile, State};
use crate::spec;
use crate::trust;

enum Output {
    Stdout,
    File(PathBuf),
}

impl Output {
    /// The file that is written, or would be.
    fn path(&self) -> &Path {
        match self {
            Self::Stdout => Path::new(publish::DEFAULT_OUTPUT),
            Self::File(path) => path,
        }
    }
}

/// Runs the verb.
pub fn run(args: &GenerateArgs, quiet: bool) -> Result<Status> {
    let output = output(args);
    let format = format(args, &output)?;
    let source = args.machine.source()?;
    let is_this_machine = matches!(source, Source::Live(_));
    let hook = hook_path(args.hook_path.as_deref(), !is_this_machine)?;

    let to_disk = matches!(output, Output::File(_)) && !args.dry_run;
    let state_dir = match output {
        Output::Stdout => args.plan.state_dir.clone(),
        Output::File(_) => publish::state_dir(args.plan.state_dir.as_deref(), output.path(), is_this_machine),
    };
    // From before the earlier plan is read until the new one is written.
    let state = state_dir.as_deref().filter(|_| to_disk).map(State::open).transpose()?;
    let earlier = state_dir.as_deref().map(publish::earlier).unwrap_or_default();

    let made = |made: &str| {
        if !quiet {
            say("note", format_args!("made {made}"));
        }
    };
    let create_nodes = args.create_device_nodes.then_some(&made as &dyn Fn(&str));
    let state_place = super::state_place(state_dir.as_deref());
    let Planned { host, mut plan, users, .. } =
        Planned::new(&args.machine, &args.plan, source, &earlier, output.path(), &state_place, create_nodes)?;
    if is_this_machine {
        plan.problems.extend(users::unknown(&users, users::uid_of)?);
    }
    for device in &plan.devices {
        let nodes: Vec<_> = device.nodes.iter().map(|node| node.path.display().to_string()).collect();
        debug!("device {} = {}: {}", device.name, device.uuid, nodes.join(" "));
    }
    print_problems(&plan, quiet);
    require_devices(&plan)?;
    let (leases, damaged) = state_dir.as_deref().map(held::leases).unwrap_or_default();
    damaged.iter().for_each(|what| say("warning", what));
    let moves = moved::from_under(&leases.running, &earlier, &host, &plan);
    if !args.dry_run {
        keep_held(&moves, args.force)?;
    }

    let roots = args.machine.roots()?;
    let kept = state_dir.as_deref().filter(|_| matches!(output, Output::File(_)));
    let kept = kept.and_then(publish::plan_path);
    let paths = spec::Paths {
        driver_root: &roots.driver,
        dev_root: &roots.dev,
        hook: &hook,
        plan: kept.as_deref(),
        state: kept.as_deref().and_then(Path::parent).unwrap_or(Path::new(publish::STATE_DIR)),
    };
    let built = spec::build(&plan, &host, &paths)?;
    if is_this_machine || args.dry_run {
        engines::unreadable(&host.engines, &built).iter().for_each(warn);
    }
    let specs = render(&built, format, &output)?;
    if matches!(output, Output::Stdout) && !args.dry_run && specs.len() > 1 && stdout_is_a_file() {
        say("warning", format_args!("these are {} specs in one file, which no engine reads", specs.len()));
        say("hint", "--output FILE writes each into a file of its own");
    }
    let is_read_here = matches!(&output, Output::File(path) if publish::is_engines(path));
    if kept.is_none() && is_read_here && plan.devices.iter().any(|device| device.leased) {
        say("warning", "shares in this spec cannot start: with --host no plan is kept");
        say("hint", format_args!("add --state-dir {}", publish::STATE_DIR));
    }
    match output {
        _ if args.dry_run => {
            dry_run(&host, &plan, state_dir.is_some().then_some(&leases), &specs, &output)?;
            keep_held(&moves, args.force)?;
            moves.iter().for_each(|held| say("warning", held));
        }
        Output::Stdout => {
            let all = specs.iter().map(|spec| spec.text.as_str()).collect::<Vec<_>>();
            let between = if format == SpecFormat::Yaml { "---\n" } else { "" };
            std::io::stdout().write_all(all.join(between).as_bytes()).context(STDOUT)?;
        }
        Output::File(path) => {
            warn_of_weakness(&[&hook, &path]);
            if !is_this_machine && publish::is_engines(&path) {
                say(
                    "warning",
                    format_args!(
                        "{} is where this machine's engines look: its containers get the devices of another host",
                        path.display()
                    ),
                );
            }
            let done =
                publish::publish(&path, &specs, &plan, &host.driver_version, &earlier, state.as_ref())?;
            moves.iter().for_each(|held| say("warning", held.moved()));
            let done = done.iter().map(ToString::to_string).collect::<Vec<_>>();
            let said = match done[..] {
                [] => format!("nothing to write to {}", path.display()),
                _ => done.join(", "),
            };
            if !quiet {
                // The specs are in place: whether somebody reads this changes nothing.
                let _ = writeln!(std::io::stdout(), "{said}: {}", summary(&plan));
                if is_this_machine {
                    note_the_daemon(&plan, state_dir.as_deref());
                }
            }
        }
    }
    Ok(if plan.problems.is_empty() { Status::Done } else { Status::Incomplete })
}

/// Without the daemon no container gets what is leased, which is better known now than at the first start.
fn note_the_daemon(plan: &Plan, state_dir: Option<&Path>) {
    let Some(dir) = state_dir else { return };
    if plan.devices.iter().any(|device| device.leased) && !held::daemon_answers(dir) {
        let socket = dir.join(hooks::lease::SOCKET);
        say(
            "note",
            format_args!(
                "containers get shares from a daemon, which does not answer at {}",
                socket.display()
            ),
        );
        say("hint", "sudo systemctl enable --now divvy.socket, or sudo divvy serve");
    }
}

/// Whoever holds a name goes on using its device. That name for another device would be granted to the next one who
/// asks, and nobody could tell any more who has what.
fn keep_held(moves: &[Held], force: bool) -> Result<()> {
    let Some(first) = moves.first().filter(|_| !force) else { return Ok(()) };
    let more = match moves.len() - 1 {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let what = anyhow::anyhow!("a name that a running container holds would move: {first}{more}");
    let hint = "stop the container first (`divvy ps` lists them), give new shares a name of their own (`divvy share GPU \
                --replicas N --name NAME`), or move names all the same with --force";
    Err(Failure::new(what).hint(hint).into())
}

fn stdout_is_a_file() -> bool {
    let found = nix::sys::stat::fstat(std::io::stdout());
    found.is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG)
}

fn warn((what, hint): &(String, String)) {
    say("warning", what);
    say("hint", hint);
}

fn render(specs: &[spec::Built], format: SpecFormat, output: &Output) -> Result<Vec<SpecFile>> {
    let render = |spec::Built { spec, part }: &spec::Built| {
        let text = match format {
            SpecFormat::Json => spec.to_json(),
            SpecFormat::Yaml => yaml(spec)?,
        };
        Ok(SpecFile {
            kind: spec.kind.to_string(),
            path: spec_file(output.path(), &spec.kind.to_string(), *part),
            text,
        })
    };
    specs.iter().map(render).collect()
}

/// Every string is quoted: to YAML 1.1 the name `0:1` is a number.
fn yaml(spec: &cdi::Spec) -> Result<String> {
    let options = serde_saphyr::ser_options! { quote_all: true };
    serde_saphyr::to_string_with_options(spec, options).context("write the spec as YAML")
}

/// A simulated or recorded host's spec belongs into the engines' directory only where somebody says so.
fn output(args: &GenerateArgs) -> Output {
    match &args.output {
        Some(path) if path == Path::new("-") => Output::Stdout,
        Some(path) => Output::File(publish::by_engines_name(path)),
        None if args.machine.host.is_some() => Output::Stdout,
        None => Output::File(publish::DEFAULT_OUTPUT.into()),
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
fn hook_path(given: Option<&Path>, elsewhere: bool) -> Result<PathBuf> {
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
    if elsewhere && given.is_none() {
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

fn summary(plan: &Plan) -> String {
    let of = |kind| plan.devices.iter().filter(|device| device.kind == kind).count();
    counts(&[
        (of(plan::Kind::Gpu), "GPU"),
        (of(plan::Kind::Mig), "MIG device"),
        (of(plan::Kind::Share), "share"),
        (plan.side.chunk_by(|a, b| a.kind == b.kind).count(), "kind beside"),
    ])
}

fn dry_run(
    host: &Host,
    plan: &Plan,
    leases: Option<&Leases>,
    specs: &[SpecFile],
    output: &Output,
) -> Result<()> {
    list::print_table(host, plan, leases)?;
    let mut out = std::io::stdout().lock();
    writeln!(out).context(STDOUT)?;
    for decision in &plan.decisions {
        writeln!(out, "{}", printable(decision)).context(STDOUT)?;
    }
    writeln!(out).context(STDOUT)?;
    for spec in specs {
        let target = match output {
            Output::Stdout => "standard output".to_owned(),
            Output::File(_) => spec.path.display().to_string(),
        };
        writeln!(out, "would write {} to {target}, {} bytes", spec.kind, spec.text.len()).context(STDOUT)?;
    }
    writeln!(out, "would give names to {} (generation {})", summary(plan), plan.generation).context(STDOUT)
}
