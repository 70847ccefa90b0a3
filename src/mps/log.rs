//! What supervisor, control daemon and servers say, in a file: the daemon writes four lines for each question that it is
//! asked, which nobody wants to find in a journal.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::place::Place;

/// The longest file, in bytes; and the longest one of before, beside it.
const LIMIT: usize = 512 << 10;
/// As much of it is looked through for what is worth keeping.
const READ: u64 = 4 * LIMIT as u64;

/// Opens it to be added to.
///
/// # Errors
/// Those of mkdir(2) and open(2).
pub fn open(place: &Place) -> io::Result<File> {
    DirBuilder::new().mode(0o755).recursive(true).create(place.log())?;
    let log = File::options().append(true).create(true).mode(0o600).open(path(place))?;
    // It names others' processes and users.
    log.set_permissions(Permissions::from_mode(0o600))?;
    Ok(log)
}

/// Sets what is there aside once it is long, without the supervisor's questions. Who has it open goes on writing, at the
/// beginning of the empty file.
///
/// # Errors
/// When the disk is full, and the like.
pub fn bound(place: &Place) -> io::Result<()> {
    let path = path(place);
    match fs::metadata(&path) {
        Ok(found) if found.len() > LIMIT as u64 => {}
        _ => return Ok(()),
    }
    let before = path.with_extension("log.1");
    let kept = read_end(&before).unwrap_or_default() + &without_questions(&read_end(&path)?);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&before)?;
    io::Write::write_all(&mut file, end_of(&kept).as_bytes())?;
    File::options().write(true).open(&path)?.set_len(0)
}

/// However long somebody made it.
fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let begin = file.metadata()?.len().saturating_sub(READ);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(READ).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn path(place: &Place) -> PathBuf {
    place.log().join("mps.log")
}

/// The lines but those that a control daemon writes of questions and their answers.
fn without_questions(text: &str) -> String {
    let mut is_question = false;
    let mut is_kept = |line: &&str| {
        let Some((_, said)) = line.split_once("] ").filter(|(who, _)| who.contains(" Control ")) else {
            return true;
        };
        let is_part = is_question || ["Accepting connection...", "NEW UI"].contains(&said.trim_end());
        match said.trim_end() {
            "UI closed" => {
                is_question = false;
                return false;
            }
            said if said.starts_with("Cmd:get_") => is_question = true,
            _ => {}
        }
        !is_part && !is_question
    };
    text.split_inclusive('\n').filter(|line| is_kept(line)).collect()
}

/// Its last lines, as many as there may be.
fn end_of(text: &str) -> &str {
    let begin = text.len().saturating_sub(LIMIT);
    if begin == 0 {
        return text;
    }
    let line = text.as_bytes()[begin..].iter().position(|byte| *byte == b'\n');
    line.map_or("", |line| &text[begin + line + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "[2026-11-21 18:07:09.183 Control 28212] Cmd:start_server -uid 0\n";

    #[test]
    fn questions_are_left_out_and_orders_stay() {
        let of_control = |said: &str| format!("[2026-11-21 18:07:09.183 Control 28212] {said}\n");
        let question = ["Accepting connection...", "NEW UI", "Cmd:get_server_list", "28222", "UI closed"];
        let question: String = question.into_iter().map(of_control).collect();
        let client = of_control("NEW CLIENT 29602 from user 0: Server already exists");
        let server = "[2026-11-21 18:07:09.183 Server 28222] Creating server context\n";
        let own = " INFO divvy::mps::keeper: GPU 0: Ready\n";
        let said = [&question, START, &client, &question, server, own].concat();
        assert_eq!(without_questions(&said), [START, &client, server, own].concat());
    }

    #[test]
    fn it_never_grows_long() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "GPU-0");
        let mut log = open(&place).unwrap();
        let size = |name: &str| fs::metadata(place.log().join(name)).map_or(0, |found| found.len());
        for _ in 0..40_000 {
            io::Write::write_all(&mut log, START.as_bytes()).unwrap();
            bound(&place).unwrap();
        }
        let (now, before) = (size("mps.log"), size("mps.log.1"));
        assert!(now <= LIMIT as u64 && before <= LIMIT as u64 && before > 500_000, "{now} {before}");
        let kept = fs::read_to_string(place.log().join("mps.log.1")).unwrap();
        assert!(kept.split_inclusive('\n').all(|line| line == START));
    }
}
