//! Who may change what root will run: the hook, the spec that names it, and every directory above them. An engine
//! runs the hook as root at each container start, so whoever may change one of these becomes root.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Write permission of group and others.
const OTHERS_WRITE: u32 = 0o022;
/// In a sticky directory only an entry's owner may rename or remove it (inode(7)).
const STICKY: u32 = 0o1000;

/// The first thing on the way to `path` that somebody but root and this process's user may change, in words.
/// What is not there yet is judged by the directory above it.
pub fn weakness(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let real = path.ancestors().find_map(|path| path.canonicalize().ok())?;
    // Both the way as it is written, whose links can be set anew, and the way that it leads now.
    path.ancestors().chain(real.ancestors()).find_map(|path| weakness_of(path).ok().flatten())
}

fn weakness_of(path: &Path) -> io::Result<Option<String>> {
    let metadata = path.symlink_metadata()?;
    let (owner, mode) = (metadata.uid(), metadata.permissions().mode());
    let trusted = owner == 0 || owner == nix::unistd::geteuid().as_raw();
    // A link's own mode means nothing; its directory's does.
    let held = metadata.is_symlink() || mode & OTHERS_WRITE == 0 || metadata.is_dir() && mode & STICKY != 0;
    Ok(match (trusted, held) {
        (false, _) => Some(format!("{} belongs to user {owner}", path.display())),
        (_, false) => Some(format!("{} is writable by others (mode {:03o})", path.display(), mode & 0o7777)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn what_others_may_change_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/hook");
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(&file, "").unwrap();
        for (dir_mode, file_mode, said) in [
            (0o755, 0o755, None),
            (0o755, 0o775, Some("a/hook is writable by others (mode 775)")),
            (0o777, 0o755, Some("a is writable by others (mode 777)")),
            (0o1777, 0o755, None),
        ] {
            fs::set_permissions(dir.path().join("a"), Permissions::from_mode(dir_mode)).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(file_mode)).unwrap();
            let said = said.map(|said| format!("{}/{said}", dir.path().canonicalize().unwrap().display()));
            assert_eq!(weakness(&file), said);
        }
        fs::set_permissions(dir.path().join("a"), Permissions::from_mode(0o777)).unwrap();
        assert!(weakness(&dir.path().join("a/missing/spec.json")).is_some());
        // A link in such a directory can be set anew, wherever it leads now.
        std::os::unix::fs::symlink("/bin/true", dir.path().join("a/link")).unwrap();
        assert!(weakness(&dir.path().join("a/link")).is_some());
    }
}
