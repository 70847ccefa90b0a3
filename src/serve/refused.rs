//! The last refusals, as a file: the daemon writes it, `divvy ps --refused` shows it to whoever asks, since crun shows
//! the user of a refused container nothing but a status. What it says of containers they said themselves.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::publish::read_regular;

/// The file in the state directory.
pub const FILE: &str = "refused.json";
/// How many are remembered.
pub const MOST: usize = 64;
/// Of one user, root excepted.
const MOST_OF_USER: usize = 16;

const VERSION: u32 = 1;

/// The longest file that is read, bytes: each refusal has at most a request's size of names, and mostly far less.
const LIMIT: u64 = 32 << 20;

/// What is remembered, the newest last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    version: u32,
    refused: VecDeque<Refused>,
}

/// A start that got nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Seconds since the epoch.
    pub at: u64,
    /// What it asked for, each as `gpu=shared-0`.
    pub asked: Vec<String>,
    /// The container's id.
    pub id: String,
    /// Its engine, if known.
    pub engine: Option<String>,
    /// Its name in the engine, if known.
    pub name: Option<String>,
    /// The user who started it.
    pub uid: u32,
    /// The hook's exit status.
    pub status: u8,
    /// Why.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { version: VERSION, refused: VecDeque::new() }
    }
}

impl Refusals {
    /// What is remembered in a state directory; nothing where there is no file.
    ///
    /// # Errors
    /// When there is a file and it is not one of these.
    pub fn read(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(FILE);
        let cannot = || format!("cannot read the refusals in {}", path.display());
        match read_regular(&path, LIMIT) {
            Ok(text) => Self::parse(&text).with_context(cannot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(cannot),
        }
    }

    /// Reads the file's text.
    fn parse(text: &str) -> Result<Self> {
        let refusals: Self = serde_json::from_str(text)?;
        if refusals.version == VERSION {
            return Ok(refusals);
        }
        anyhow::bail!("it is of version {}, and this divvy reads version {VERSION}", refusals.version)
    }

    /// Remembers one more, and forgets the oldest for it: the oldest of a user who has many, so that nobody drives out
    /// those of all others.
    pub fn push(&mut self, refused: Refused) {
        let of_user = |other: &Refused| other.uid == refused.uid;
        if refused.uid != 0 && self.refused.iter().filter(|other| of_user(other)).count() >= MOST_OF_USER {
            let oldest = self.refused.iter().position(of_user);
            oldest.and_then(|oldest| self.refused.remove(oldest));
        }
        self.refused.push_back(refused);
        while self.refused.len() > MOST {
            self.refused.pop_front();
        }
    }

    /// The newest first, those of a user before all others.
    pub fn of_user_first(&self, uid: u32) -> Vec<&Refused> {
        let newest_first = || self.refused.iter().rev();
        newest_first()
            .filter(|refused| refused.uid == uid)
            .chain(newest_first().filter(|refused| refused.uid != uid))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(at: u64, uid: u32) -> Refused {
        Refused {
            at,
            asked: vec!["gpu=shared-0".into()],
            id: "3f2a".into(),
            engine: None,
            name: None,
            uid,
            status: 3,
            message: "gpu=shared-0 is held".into(),
            hint: None,
        }
    }

    #[test]
    fn the_oldest_are_forgotten_and_the_askers_own_come_first() {
        let mut refusals = Refusals::default();
        for at in 0..100 {
            refusals.push(refused(at, if at % 2 == 0 { 0 } else { 1001 }));
        }
        let shown: Vec<(u32, u64)> =
            refusals.of_user_first(1001).iter().map(|refused| (refused.uid, refused.at)).collect();
        assert_eq!(shown.len(), MOST);
        assert_eq!(shown[..2], [(1001, 99), (1001, 97)]);
        assert_eq!(shown[MOST_OF_USER - 1..MOST_OF_USER + 2], [(1001, 69), (0, 98), (0, 96)]);
        for at in 100..200 {
            refusals.push(refused(at, 1002));
        }
        assert_eq!(refusals.of_user_first(1001).len(), MOST);
        assert_eq!(refusals.of_user_first(1001)[MOST_OF_USER - 1].at, 69);
    }

    #[test]
    fn what_is_written_is_read_and_nothing_of_another_version() {
        let mut refusals = Refusals::default();
        refusals.push(refused(1, 0));
        let text = serde_json::to_string(&refusals).unwrap();
        assert_eq!(Refusals::parse(&text).unwrap(), refusals);
        let newer = text.replace("\"version\":1", "\"version\":2");
        let error = Refusals::parse(&newer).unwrap_err().to_string();
        assert_eq!(error, "it is of version 2, and this divvy reads version 1");
        assert!(Refusals::parse("{}").is_err());
    }
}
