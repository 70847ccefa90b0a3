//! `divvy sim HOST DIR`: lays a simulated host out as real files, links and device nodes, so that real engines
//! run containers on it without a GPU. The nodes carry the driver's real numbers and have no driver behind them:
//! opening one gives ENXIO where the device cgroup allows it and EPERM where it does not.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::{STDOUT, no_such_host};
use crate::cli::SimArgs;
use crate::discover::create::make_node;
use crate::discover::files::join_root;
use crate::discover::sim::{Entry, SimHost, Tree, shared_object};
use crate::failure::{Failure, Status};
use crate::trust;

/// Runs the verb.
pub fn run(args: &SimArgs, quiet: bool) -> Result<Status> {
    let name = args.name.strip_prefix("sim:").unwrap_or(&args.name);
    let host = SimHost::parse(name).ok_or_else(|| no_such_host(&args.name))?;
    let dir = std::path::absolute(&args.dir)?;
    require_empty(&dir)?;
    let parent = dir.parent().context("the directory needs a name")?;
    if let Some(weakness) = trust::weakness(parent) {
        return Err(Failure::new(anyhow::anyhow!(
            "cannot lay a host out in {}: {weakness}",
            parent.display()
        ))
        .hint("choose a directory below one that only you can change: links in it could lead anywhere")
        .into());
    }
    let tree = host.tree();
    // Beside the target and renamed at the end, so that a half-made host is never taken for a whole one.
    let scratch = tempfile::Builder::new().prefix(".divvy-sim.").tempdir_in(parent);
    let scratch = scratch.with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    lay_out(&tree, scratch.path())?;
    fs::rename(scratch.path(), &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // It is gone from there: nothing is left to remove.
    let _ = scratch.keep();
    if !quiet {
        let count = tree.entries().count();
        writeln!(io::stdout(), "sim:{}: {count} files and nodes in {}", host.name, dir.display())
            .context(STDOUT)?;
    }
    Ok(Status::Done)
}

fn require_empty(dir: &Path) -> Result<()> {
    let count = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        entries => entries.with_context(|| format!("cannot look into {}", dir.display()))?.count(),
    };
    if count == 0 {
        return Ok(());
    }
    Err(Failure::new(anyhow::anyhow!("{} is not empty", dir.display()))
        .hint("name a directory that is empty or not there yet")
        .status(Status::Usage)
        .into())
}

/// The directory itself stays closed to others: the nodes in it carry numbers that another driver may have here.
fn lay_out(tree: &Tree, dir: &Path) -> Result<()> {
    for (path, entry) in tree.entries() {
        let place = join_root(dir, path);
        make_parents(&place, dir)
            .and_then(|()| lay_out_entry(entry, &place))
            .map_err(|error| explain(error, path))?;
    }
    Ok(())
}

/// 0755 whatever the umask, as on a host.
fn make_parents(path: &Path, root: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if parent.exists() || parent == root {
        return Ok(());
    }
    make_parents(parent, root)?;
    fs::create_dir(parent)?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755))
}

fn lay_out_entry(entry: &Entry, path: &Path) -> io::Result<()> {
    let file = |contents: &[u8], mode: u32| {
        fs::write(path, contents)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    match entry {
        Entry::Text(text) => file(text.as_bytes(), 0o644),
        Entry::Program(script) => file(script.as_bytes(), 0o755),
        Entry::SharedObject(soname) => file(&shared_object(soname), 0o644),
        Entry::Link(target) => symlink(target, path),
        Entry::Node(node) => {
            let (parent, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
            make_node(fs::File::open(parent)?, Path::new(name), node)
        }
    }
}

fn explain(error: io::Error, path: &Path) -> anyhow::Error {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let failure = anyhow::Error::new(error).context(format!("cannot make {} of the host", path.display()));
    if !denied {
        return failure;
    }
    Failure::new(failure).hint("run as root: only root makes device nodes").into()
}
