//! `divvy-hook`: the OCI hook that a CDI spec of divvy names. An engine runs it as root, in the middle of starting a
//! container whose image may be hostile; so it cleans itself first, then reads what it is told, then gives up what it
//! does not need, and only then touches the container. It exits 0 when all is done, 2 when the command line is wrong or
//! standard input a terminal, 6 when the spec is not of this machine as it is now, 1 for anything else.

mod process;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use hooks::args::{Command, Phase};
use hooks::rootfs::Root;
use hooks::state::Container;
use hooks::{create_container, device_files, stale, state};

const USAGE: u8 = 2;
const STALE: u8 = 6;

fn main() -> ExitCode {
    if let Err(error) = process::clean() {
        return fail(&error.into());
    }
    match Command::parse_words(std::env::args_os()) {
        Ok(_) if std::io::stdin().is_terminal() => {
            say("error", "standard input is a terminal");
            hint(state::Error::Empty.hint());
            ExitCode::from(USAGE)
        }
        Ok(command) => match run(command.phase) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Err(error) => refuse(&error),
    }
}

fn run(phase: Phase) -> anyhow::Result<()> {
    let request = match phase {
        Phase::CreateContainer(request) => request,
        Phase::CreateRuntime(_) => anyhow::bail!("this release asks no daemon"),
    };
    let params = device_files::params_without_modification();
    let to_mount: &[_] = if params.is_some() { process::TO_MOUNT } else { &[] };
    process::keep(&[process::FOR_FILES, process::TO_BE_THE_OWNER, to_mount])?;
    let container = Container::read(std::io::stdin().lock())?;
    stale::check(&request)?;
    let root = Root::open(&container.root()?)?;
    process::create_files_as(root.owner());
    if let Some(params) = params {
        process::keep(&[process::FOR_FILES, process::TO_MOUNT])?;
        if let Err(error) = device_files::switch_off(&root, &params) {
            let error = anyhow::Error::new(error);
            say("warning", format_args!("the driver may make device nodes in this container: {error:#}"));
        }
    }
    process::keep(&[process::FOR_FILES])?;
    let report = create_container::run(&root, &request)?;
    report.notes.iter().for_each(|note| say("warning", note));
    Ok(())
}

fn fail(error: &anyhow::Error) -> ExitCode {
    say("error", format_args!("{error:#}"));
    let stale = error.downcast_ref().map(stale::Error::hint);
    let of_pass = error.downcast_ref().and_then(create_container::Error::hint);
    hint(stale.or(of_pass).or_else(|| error.downcast_ref().and_then(state::Error::hint)));
    if stale.is_some() { ExitCode::from(STALE) } else { ExitCode::FAILURE }
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
        say("error", error.to_string().trim_start_matches("error: ").trim_end());
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
