//! `divvy-hook`: the OCI hook that a CDI spec of divvy names. An engine runs it as root, in the middle of starting a
//! container whose image may be hostile; so it cleans itself first, then reads what it is told, then gives up what it
//! does not need, and only then touches the container. It exits 0 when all is done, 2 when the command line or standard
//! input is not an engine's, 1 for anything else.

mod process;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use hooks::args::{Command, Phase};
use hooks::rootfs::Root;
use hooks::state::Container;
use hooks::{create_container, state};

const USAGE: u8 = 2;

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
    process::keep(process::UNTIL_ROOT_IS_KNOWN)?;
    let container = Container::read(std::io::stdin().lock())?;
    let root = Root::open(&container.root()?)?;
    process::create_files_as(root.owner());
    process::keep(process::FOR_FILES)?;
    match phase {
        Phase::CreateContainer(request) => {
            let report = create_container::run(&root, &request)?;
            report.notes.iter().for_each(|note| say("warning", note));
        }
    }
    Ok(())
}

fn fail(error: &anyhow::Error) -> ExitCode {
    say("error", format_args!("{error:#}"));
    let of_pass = error.downcast_ref().and_then(create_container::Error::hint);
    hint(of_pass.or_else(|| error.downcast_ref().and_then(state::Error::hint)));
    ExitCode::FAILURE
}

/// Ends a run whose command line is not one to act on, or asks for help.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Whoever closed the pipe has read enough.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    say("error", text.trim_start_matches("error: ").trim_end());
    if matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand) {
        hint(Some(
            "the spec is newer than this hook: install both from one release, or run `divvy generate` again",
        ));
    }
    ExitCode::from(USAGE)
}

/// Writes a line for whoever started the container. Engines may have closed standard error; that is no reason to fail.
fn say(kind: &str, what: impl Display) {
    let _ = writeln!(std::io::stderr(), "{kind}: divvy-hook: {what}");
}

fn hint(hint: Option<&str>) {
    if let Some(hint) = hint {
        let _ = writeln!(std::io::stderr(), "hint: {hint}");
    }
}
