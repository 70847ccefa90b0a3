//! `divvy record DIR`: writes all that discovery reads into a directory, which `--host DIR` replays on any machine.
//! What was written is replayed before it is put in its place: a record that tells another host is no record.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::new_directory::{NewDirectory, make_parents, write_file};
use super::{STDOUT, counts};
use crate::cli::RecordArgs;
use crate::config;
use crate::discover::host::Host;
use crate::discover::recorded::{CONFIGS, Recorded};
use crate::discover::{self, Source};
use crate::failure::{Failure, Status, say};
use crate::publish;

/// Runs the verb.
pub fn run(args: &RecordArgs, quiet: bool) -> Result<Status> {
    let source = args.machine.source()?;
    let config = super::stored_config(args.config.as_deref(), false, &source)?;
    let config_name = CONFIGS[usize::from(config::is_yaml(&config.name))];
    let config = config.is_there.then_some((config_name, config.text));
    let new = NewDirectory::begin(&args.dir, "write a recorded host")?;
    let output = Path::new(publish::DEFAULT_OUTPUT);
    let recording = discover::record(&source, output)?;
    let files = recording.files(config, args.mask)?;
    for (path, text) in &files {
        let place = new.path().join(path);
        make_parents(&place, new.path())
            .and_then(|()| write_file(&place, text.as_bytes(), 0o644))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let replayed = Recorded::open(new.path()).map(|recorded| Source::Recorded(Box::new(recorded)));
    let replayed =
        replayed.and_then(|recorded| discover::discover(&recorded, output)).map_err(not_replayed)?;
    if !recording.is_replayed_by(&replayed, args.mask)? {
        return Err(not_replayed(anyhow::anyhow!("the replay tells another host")));
    }
    fs::set_permissions(new.path(), Permissions::from_mode(0o755))
        .context("cannot open the directory to others")?;
    let dir = new.finish()?;
    if !quiet {
        let what = summary(&recording.host);
        writeln!(io::stdout(), "recorded {what} in {} ({} files)", dir.display(), files.len())
            .context(STDOUT)?;
        notes(&dir, args.mask);
    }
    Ok(Status::Done)
}

fn notes(dir: &Path, mask: bool) {
    let uuids = if mask { "UUIDs are replaced by numbers" } else { "UUIDs are in it; --mask takes them out" };
    say(
        "note",
        format_args!(
            "it holds what NVML says, device numbers, the driver's file names and the configuration; no host or user names, no processes; {uuids}"
        ),
    );
    say("note", format_args!("`divvy list --host {}` replays it", dir.display()));
}

fn summary(host: &Host) -> String {
    let mig_devices = host.gpus.iter().map(|gpu| gpu.mig_devices.len()).sum();
    counts(&[(host.gpus.len(), "GPU"), (mig_devices, "MIG device")])
}

fn not_replayed(error: anyhow::Error) -> anyhow::Error {
    Failure::new(error.context("the record is not this host's, nothing was written"))
        .hint("this is a defect of divvy: please report it with what `divvy --debug list` prints")
        .into()
}
