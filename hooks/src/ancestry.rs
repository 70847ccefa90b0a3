//! What /proc says of a container's first process and of the processes that start the container (proc_pid_stat(5)).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As much of a file of /proc as is read, in bytes.
const LIMIT: u64 = 64 << 10;
/// From a hook to the conmon that called its runtime: the runtime may have forked.
const STEPS: usize = 6;

/// When a process started, in clock ticks since boot. With its id it names one process for good.
///
/// # Errors
/// When there is no such process, or /proc does not tell.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let field = stat(pid)?.get(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "there is no start time in its stat"))
}

/// What Podman calls the container with this id: its conmon called the runtime, and has it in its command line.
pub fn podman_name(id: &str) -> Option<String> {
    let above = |&pid: &i32| stat(pid).ok()?.get(1)?.parse().ok();
    std::iter::successors(i32::try_from(std::process::id()).ok(), above)
        .take(STEPS)
        .take_while(|&pid| pid > 1)
        .find_map(|pid| conmon_name(&text(pid, "cmdline").ok()?, id))
}

/// The name in a command line, if it is that of a conmon for this container.
fn conmon_name(command_line: &str, id: &str) -> Option<String> {
    let words: Vec<&str> = command_line.split('\0').collect();
    let is_conmon = Path::new(words.first()?).file_name().is_some_and(|name| name == "conmon");
    let after = |options: [&str; 2]| {
        let at = words.iter().position(|word| options.contains(word))?;
        words.get(at + 1).copied()
    };
    (is_conmon && after(["-c", "--cid"]) == Some(id)).then(|| after(["-n", "--name"]).map(str::to_owned))?
}

/// The fields after the command's name, which may hold blanks and brackets: state, parent, and so on.
fn stat(pid: i32) -> io::Result<Vec<String>> {
    let text = text(pid, "stat")?;
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

fn text(pid: i32, file: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{file}"))?.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        let started = start_time(own).unwrap();
        assert!(started > 0 && started >= start_time(1).unwrap());
        assert_eq!(stat(own).unwrap()[1], std::os::unix::process::parent_id().to_string());
        assert_eq!(start_time(i32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_conmon_has_the_name() {
        let conmon = "/usr/bin/conmon|--api-version|1|-c|3f2a|-u|3f2a|-r|/usr/bin/crun|-n|web|-s";
        for (line, id, name) in [
            (conmon, "3f2a", Some("web")),
            (conmon, "3f2", None),
            ("/usr/bin/crun|-c|3f2a|-n|web", "3f2a", None),
            ("conmon|--cid|3f2a|--name|a b", "3f2a", Some("a b")),
            ("conmon|-c|3f2a|-n", "3f2a", None),
            ("", "", None),
        ] {
            assert_eq!(conmon_name(&line.replace('|', "\0"), id).as_deref(), name, "{line:?}");
        }
    }
}
