//! `divvy sim HOST DIR`: lays a simulated host out as real files, links and device nodes, so that real engines
//! run containers on it without a GPU. The nodes carry the driver's real numbers and have no driver behind them:
//! opening one gives ENXIO where the device cgroup allows it and EPERM where it does not.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::stat::{Mode, SFlag, mknod, umask};

use super::new_directory::{NewDirectory, make_parents, write_file};
use super::{STDOUT, no_such_host};
use crate::cli::SimArgs;
use crate::discover::create::make_node;
use crate::discover::files::join_root;
use crate::discover::sim::{Entry, SimHost, Tree, shared_object};
use crate::failure::{Failure, Status};

/// Runs the verb.
pub fn run(args: &SimArgs, quiet: bool) -> Result<Status> {
    let name = args.name.strip_prefix("sim:").unwrap_or(&args.name);
    let host = SimHost::parse(name).ok_or_else(|| no_such_host(&args.name))?;
    let new = NewDirectory::begin(&args.dir, "lay a host out")?;
    let tree = host.tree();
    lay_out(&tree, new.path())?;
    let dir = new.finish()?;
    if !quiet {
        let count = tree.entries().count();
        writeln!(io::stdout(), "sim:{}: {count} files and nodes in {}", host.name, dir.display())
            .context(STDOUT)?;
    }
    Ok(Status::Done)
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

fn lay_out_entry(entry: &Entry, path: &Path) -> io::Result<()> {
    let file = |contents: &[u8], mode: u32| write_file(path, contents, mode);
    match entry {
        Entry::Text(text) => file(text.as_bytes(), 0o644),
        Entry::Program(script) => file(script.as_bytes(), 0o755),
        Entry::SharedObject(soname) => file(&shared_object(soname), 0o644),
        Entry::Link(target) => symlink(target, path),
        Entry::Node(node) => {
            let (parent, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
            make_node(fs::File::open(parent)?, Path::new(name), node)?;
            lchown(path, None, Some(node.gid))
        }
        Entry::Socket => {
            // Not bind(2), which takes no path of more than 108 bytes. Nobody would listen either way.
            let before = umask(Mode::empty());
            let made = mknod(path, SFlag::S_IFSOCK, Mode::from_bits_truncate(0o666), 0);
            umask(before);
            Ok(made?)
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
