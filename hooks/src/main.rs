//! `divvy-hook`: the OCI hook that a CDI spec of divvy names. An engine runs it as root, in the middle of starting a
//! container whose image may be hostile; so it cleans itself first, then reads what it is told, then gives up what it
//! does not need, and only then asks the daemon or touches the container. It exits 0 when all is done, 2 when the command
//! line is wrong or standard input a terminal, 4 when the daemon does not answer, 3 or 5 when it refuses, 6 when the spec is
//! not of this machine as it is now, 1 for anything else.

mod process;
mod syslog;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::{ContextKind, ErrorKind};
use hooks::args::{Command, CreateContainer, CreateRuntime, Phase};
use hooks::rootfs::Root;
use hooks::state::{Container, asked_in_config};
use hooks::user_namespace::UserIds;
use hooks::{ancestry, create_container, create_runtime, device_files, leased, mps, stale, state};

const USAGE: u8 = 2;
const STALE: u8 = 6;

fn main() -> ExitCode {
    let mut deadline = match process::clean() {
        Ok(deadline) => deadline,
        Err(error) => return fail(&error.into()).0,
    };
    match Command::parse_words(std::env::args_os()) {
        Ok(_) if std::io::stdin().is_terminal() => {
            say("error", "standard input is a terminal");
            hint(state::Error::Empty.hint());
            ExitCode::from(USAGE)
        }
        Ok(Command { phase }) => {
            let mut id = None;
            let done = match phase {
                Phase::CreateRuntime(words) => create_runtime(&words, &mut deadline, &mut id),
                Phase::CreateContainer(request) => create_container(&request, &mut id),
            };
            done.map_or_else(|error| log(id.as_deref(), fail(&error)), |()| ExitCode::SUCCESS)
        }
        Err(error) => refuse(&error),
    }
}

/// Gives the container's id to `id` as soon as it is known.
fn create_runtime(
    words: &CreateRuntime,
    deadline: &mut process::Deadline,
    id: &mut Option<String>,
) -> anyhow::Result<()> {
    process::keep(&[process::TO_READ])?;
    let container = Container::read(std::io::stdin().lock())?;
    *id = Some(container.id()?.to_owned());
    let program = std::env::args().next().unwrap_or_default();
    let is_rootless = !UserIds::read().are_the_hosts();
    let runtime = format!("/proc/{}/cmdline", parent_id());
    let (bundle, config) = container.config_by(Path::new(&runtime))?;
    let asked = asked_in_config(&config, &program, words, is_rootless)?;
    process::keep(&[])?;
    let pid = container.pid()?;
    let start_time = ancestry::start_time(pid)
        .with_context(|| format!("cannot see when the container's process {pid} started"))?;
    let request = create_runtime::request(&container, start_time, bundle, asked)?;
    deadline.after(create_runtime::patience(words))?;
    // A queue may be lost, and the daemon be asked again, in the time that it was given at first.
    let mut late = Ok(());
    let queues = |wait| late = deadline.after(wait);
    let granted = create_runtime::ask(words, &request, queues);
    granted.map(drop).map_err(anyhow::Error::from).and(late.map_err(anyhow::Error::from))
}

/// Likewise.
fn create_container(request: &CreateContainer, id: &mut Option<String>) -> anyhow::Result<()> {
    let params = device_files::params_without_modification();
    let mounts = params.is_some() || request.leases.is_some();
    let to_mount: &[_] = if mounts { process::TO_MOUNT } else { &[] };
    process::keep(&[process::FOR_FILES, process::TO_BE_THE_OWNER, to_mount])?;
    let container = Container::read(std::io::stdin().lock())?;
    *id = container.id().ok().map(str::to_owned);
    stale::check(request)?;
    let lease = request.leases.as_deref().map(|leases| leased::read(leases, &container)).transpose()?;
    let root = Root::open(&container.root()?)?;
    process::create_files_as(root.owner());
    process::keep(&[process::FOR_FILES, to_mount])?;
    if let Some(lease) = lease {
        leased::take_away(&root, &lease, &request.device_links)?;
        lease.mps.iter().try_for_each(|directories| mps::mount(&root, directories))?;
    }
    if let Some(params) = params
        && let Err(error) = device_files::switch_off(&root, &params)
    {
        let error = anyhow::Error::new(error);
        say("warning", format_args!("the driver may make device nodes in this container: {error:#}"));
    }
    process::keep(&[process::FOR_FILES])?;
    let report = create_container::run(&root, request)?;
    report.notes.iter().for_each(|note| say("warning", note));
    Ok(())
}

/// Says why, and gives that and the status.
fn fail(error: &anyhow::Error) -> (ExitCode, String) {
    let why = format!("{error:#}");
    say("error", &why);
    let of_daemon: Option<&create_runtime::Error> = error.downcast_ref();
    let stale: Option<&stale::Error> = error.downcast_ref();
    hint(
        of_daemon
            .and_then(create_runtime::Error::hint)
            .or(stale.map(stale::Error::hint))
            .or_else(|| error.downcast_ref().and_then(leased::Error::hint))
            .or_else(|| error.downcast_ref().and_then(create_container::Error::hint))
            .or_else(|| error.downcast_ref().and_then(state::Error::hint)),
    );
    let status = of_daemon.map(create_runtime::Error::status).or(stale.map(|_| STALE));
    (status.map_or(ExitCode::FAILURE, ExitCode::from), why)
}

/// Tells the system's log too.
fn log(container: Option<&str>, (status, why): (ExitCode, String)) -> ExitCode {
    syslog::failure(container, &why);
    status
}

/// Ends a run whose command line is not one to act on, or asks for help.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Whoever closed the pipe has read enough.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // A newer spec may have hooks that this release knows nothing of; what it knows it does all the same.
    if error.kind() == ErrorKind::InvalidSubcommand {
        let name = error.get(ContextKind::InvalidSubcommand).map(ToString::to_string).unwrap_or_default();
        say("warning", format_args!("there is no subcommand {name:?} in this release: nothing is done"));
        hint(Some("the spec is newer than this hook: install both from one release"));
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        say("error", "a subcommand is missing");
    } else {
        let why = error.to_string();
        let why = why.trim_start_matches("error: ").trim_end();
        say("error", why);
        if std::env::args_os().nth(1).is_some_and(|phase| phase == "create-runtime") {
            syslog::failure(None, why);
        }
    }
    hint(Some(match error.kind() {
        ErrorKind::UnknownArgument => {
            "the spec is newer than this hook: install both from one release, or run `sudo divvy generate` again"
        }
        _ => {
            "engines run this program as a CDI spec of divvy's says; `divvy-hook --help` lists what it takes"
        }
    }));
    ExitCode::from(USAGE)
}

/// Writes a line for whoever started the container. Engines may have closed standard error; that is no reason to fail.
fn say(kind: &str, what: impl Display) {
    // In one call: runtimes start hooks of several containers at once.
    let _ = std::io::stderr().write_all(format!("{kind}: divvy-hook: {what}\n").as_bytes());
}

fn hint(hint: Option<&str>) {
    if let Some(hint) = hint {
        let _ = std::io::stderr().write_all(format!("hint: {hint}\n").as_bytes());
    }
}
