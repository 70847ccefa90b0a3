//! What containers see of MPS: a directory with the socket `control` alone. It is the control daemon's, as one more name of
//! the same socket, or a tombstone, on which the supervisor greets and hangs up: CUDA fails with 805 then
//! (CUDA_ERROR_MPS_CONNECTION_FAILED). Where nothing listened, CUDA would run without MPS, and without limits.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, send, socket,
};

use super::place::Place;

/// The socket's name, in the front as in the pipe directory.
pub const CONTROL: &str = "control";
/// The first that a control daemon says.
const GREETING: &[u8] = b"OUTBHELL\0";
/// As many as may wait to be turned away.
const BACKLOG: i32 = 64;

/// The front of one device.
#[derive(Debug)]
pub struct Front {
    socket: PathBuf,
    control: PathBuf,
    /// Made here, and renamed: nobody finds the front without a socket.
    beside: PathBuf,
    tombstone: Option<Tombstone>,
}

#[derive(Debug)]
struct Tombstone {
    listener: OwnedFd,
    /// Device and inode of its socket: who may mount the front writable can put another in its place.
    file: (u64, u64),
}

impl Front {
    /// The front, which is made where it is missing.
    ///
    /// # Errors
    /// When the directory cannot be made, or is no directory.
    pub fn open(place: &Place) -> io::Result<Self> {
        let front = place.front();
        match DirBuilder::new().mode(0o755).create(&front) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::set_permissions(&front, Permissions::from_mode(0o755))?,
        }
        let beside = place.directory().join(".control.new");
        Ok(Self { socket: front.join(CONTROL), control: place.pipe().join(CONTROL), beside, tombstone: None })
    }

    /// Whether containers reach the control daemon.
    pub fn is_open(&self) -> bool {
        let control = file(&self.control);
        self.tombstone.is_none() && control.is_some() && file(&self.socket) == control
    }

    /// Whether they find the tombstone.
    fn is_closed(&self) -> bool {
        self.tombstone.as_ref().is_some_and(|tombstone| file(&self.socket) == Some(tombstone.file))
    }

    /// Lets containers reach the control daemon.
    ///
    /// # Errors
    /// When its socket is not there, or cannot be linked.
    pub fn link(&mut self) -> io::Result<()> {
        self.clear()?;
        fs::hard_link(&self.control, &self.beside)?;
        self.put()?;
        self.take_down();
        Ok(())
    }

    /// Puts the tombstone in the place of the control daemon's socket. It stands as long as this lives.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn close(&mut self) -> io::Result<()> {
        if self.is_closed() {
            return Ok(());
        }
        self.clear()?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let tombstone = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(tombstone.as_raw_fd(), &UnixAddr::new(&self.beside)?)?;
        fs::set_permissions(&self.beside, Permissions::from_mode(0o666))?;
        listen(&tombstone, Backlog::new(BACKLOG)?)?;
        let file = file(&self.beside).ok_or(io::ErrorKind::NotFound)?;
        self.put()?;
        self.tombstone = Some(Tombstone { listener: tombstone, file });
        Ok(())
    }

    /// Readable while somebody knocks at the tombstone.
    pub fn tombstone(&self) -> Option<BorrowedFd<'_>> {
        self.tombstone.as_ref().map(|tombstone| tombstone.listener.as_fd())
    }

    /// Turns away those who knock, as many as may wait.
    pub fn turn_away(&self) {
        let Some(tombstone) = &self.tombstone else { return };
        for _ in 0..BACKLOG {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let Ok(fd) = accept4(tombstone.listener.as_raw_fd(), flags) else { return };
            let caller = crate::sys::accepted(fd);
            // Who has left already needs no greeting.
            let _ = send(caller.as_raw_fd(), GREETING, MsgFlags::MSG_NOSIGNAL);
        }
    }

    /// Leaves the front empty, where nobody has it.
    ///
    /// # Errors
    /// When the socket cannot be removed.
    pub fn remove(&mut self) -> io::Result<()> {
        self.take_down();
        self.clear()?;
        remove(&self.socket)
    }

    /// Who knocked while somebody else was busy here is turned away as well, and not left to guess at a reset.
    fn take_down(&mut self) {
        self.turn_away();
        self.tombstone = None;
    }

    /// Puts what was made beside it there, in the place of whatever is there.
    fn put(&self) -> io::Result<()> {
        match fs::rename(&self.beside, &self.socket) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                renameat2(AT_FDCWD, &self.beside, AT_FDCWD, &self.socket, RenameFlags::RENAME_EXCHANGE)?;
                self.clear()
            }
            renamed => renamed,
        }
    }

    /// What was left beside it by a supervisor that was killed, or came out of the front: a directory of somebody who
    /// mounted that writable. It may be full, so it is not removed, but out of everybody's way.
    fn clear(&self) -> io::Result<()> {
        match remove(&self.beside) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                let found = fs::symlink_metadata(&self.beside)?.ino();
                fs::rename(&self.beside, self.beside.with_file_name(format!(".found-{found}")))
            }
            removed => removed,
        }
    }
}

/// Device and inode.
fn file(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{connect, recv};

    use super::*;

    fn knock(path: &Path) -> Vec<u8> {
        let caller = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        connect(caller.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        let mut said = [0; 64];
        let length = recv(caller.as_raw_fd(), &mut said, MsgFlags::empty()).unwrap();
        said[..length].to_vec()
    }

    #[test]
    fn the_front_is_the_daemons_socket_or_a_tombstone() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "GPU-0");
        fs::create_dir_all(place.pipe()).unwrap();
        let mut front = Front::open(&place).unwrap();
        assert!(front.link().is_err(), "there is no control daemon");
        front.close().unwrap();
        assert!(!front.is_open());
        let control = place.front().join(CONTROL);
        std::thread::scope(|scope| {
            let said = scope.spawn(|| knock(&control));
            while !said.is_finished() {
                front.turn_away();
            }
            assert_eq!(said.join().unwrap(), GREETING);
        });
        for _daemon in 0..2 {
            let _ = fs::remove_file(place.pipe().join(CONTROL));
            fs::write(place.pipe().join(CONTROL), "").unwrap();
            assert!(!front.is_open(), "it is that of the daemon before");
            front.link().unwrap();
            assert!(front.is_open());
        }
        let names = fs::read_dir(place.front()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [CONTROL]);
        // Whatever somebody put there, or a supervisor that was killed left halfway out of it.
        for directory in [&control, &place.directory().join(".control.new")] {
            let _ = fs::remove_file(&control);
            fs::create_dir_all(directory.join("full")).unwrap();
            front.close().unwrap();
            assert!(front.is_closed() && !front.is_open());
            front.link().unwrap();
            assert!(front.is_open());
        }
        front.remove().unwrap();
        assert!(!control.exists() && place.front().exists());
    }
}
