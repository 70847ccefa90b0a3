//! Makes the device nodes that are missing, where the user asked for it. Numbers come from the kernel; what
//! stands at a path already is never replaced, and no link below /dev is followed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat, umask};

use super::files::{Node, join_root, node_at, open_directory};
use super::host::{Found, Host};
use crate::failure::Failure;

/// Makes every node of the host that is missing and whose numbers are known; returns what was made.
/// Nodes whose driver is not registered with the kernel stay missing, for the planner to name.
pub fn missing_nodes(host: &mut Host, dev_root: &Path) -> Result<Vec<String>> {
    let mut made = Vec::new();
    for node in host.nodes_mut() {
        let (Some(major), Some(mode)) = (node.major, node.create_mode) else { continue };
        if node.found != Found::Missing {
            continue;
        }
        let path = join_root(dev_root, &node.path);
        let wanted = Node { major, minor: node.minor, mode, gid: 0 };
        match make_below_dev(dev_root, &node.path, &wanted) {
            Ok(()) => made.push(format!("{} ({major}:{})", path.display(), node.minor)),
            // Another process was first: two compute instances share a node, or two runs overlap.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let hint = "run as root, and outside a container: only there device nodes can be made";
                let failure = anyhow::Error::new(error).context(format!("cannot make {}", path.display()));
                return Err(Failure::new(failure).hint(hint).into());
            }
        }
        node.found = node.judge(node_at(&path));
    }
    Ok(made)
}

/// `path` is /dev/NAME or /dev/DIRECTORY/NAME.
fn make_below_dev(dev_root: &Path, path: &Path, node: &Node) -> io::Result<()> {
    let mut dir = OwnedFd::from(open_directory(&join_root(dev_root, Path::new("/dev")))?);
    let below: PathBuf = path.strip_prefix("/dev").unwrap_or(path).into();
    let (parent, name) = (below.parent().unwrap_or(Path::new("")), below.file_name().unwrap_or_default());
    for component in parent {
        match mkdirat(&dir, component, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        dir = openat2(&dir, component, how)?;
    }
    make_node(&dir, Path::new(name), node)
}

/// mknodat(2) of a character device with exactly these permission bits, whatever the umask was.
pub fn make_node(dir: impl AsFd, name: &Path, node: &Node) -> io::Result<()> {
    let number = makedev(node.major.into(), node.minor.into());
    // Not a chmod afterwards, which would follow what somebody put in the node's place meanwhile.
    let before = umask(Mode::empty());
    let made = mknodat(dir, name, SFlag::S_IFCHR, Mode::from_bits_truncate(node.mode), number);
    umask(before);
    Ok(made?)
}
