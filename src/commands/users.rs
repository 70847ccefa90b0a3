//! The names of `[users]` beside this machine's user database: a name that nobody has caps nobody, and one user has one
//! entry. Asked when a spec is written for this machine; the daemon asks again, of whoever starts a container.

use std::collections::BTreeMap;

use anyhow::Result;
use nix::unistd::User;

use crate::config::UserRule;
use crate::failure::{Failure, Status};
use crate::plan::Problem;

/// The uid of a user's name; none where the database knows no such user.
///
/// # Errors
/// When the database does not answer.
pub fn uid_of(name: &str) -> nix::Result<Option<u32>> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// The entries that are about nobody. What a database that does not answer may know is none of them.
///
/// # Errors
/// When two entries are about one user: a name and its number.
pub fn unknown(
    rules: &[UserRule],
    uid_of: impl Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<Vec<Problem>> {
    let mut seen: BTreeMap<u32, &UserRule> = BTreeMap::new();
    let mut problems = Vec::new();
    for rule in rules.iter().filter(|rule| rule.user != "*") {
        let uid = match rule.user.parse() {
            Ok(uid) => uid,
            Err(_) => match uid_of(&rule.user) {
                Ok(Some(uid)) => uid,
                Ok(None) => {
                    problems.push(nobody(rule));
                    continue;
                }
                Err(_) => continue,
            },
        };
        if let Some(first) = seen.insert(uid, rule) {
            return Err(twice(first, rule, uid));
        }
    }
    Ok(problems)
}

fn nobody(rule: &UserRule) -> Problem {
    Problem {
        place: Some(rule.place.to_string()),
        what: format!("there is no user {:?}", rule.user),
        why: "on this machine: nobody is capped by it".into(),
        hint: "`getent passwd` lists the users; a uid is taken as it is".into(),
    }
}

fn twice(first: &UserRule, rule: &UserRule, uid: u32) -> anyhow::Error {
    let what = anyhow::anyhow!(
        "{}: {:?} and {:?}, at {}, are one user, whose uid is {uid}",
        rule.place,
        rule.user,
        first.user,
        first.place
    );
    Failure::new(what).hint("remove one of the two").status(Status::Usage).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn uid_of(name: &str) -> nix::Result<Option<u32>> {
        match name {
            "ana" => Ok(Some(1001)),
            "nosuch" => Ok(None),
            _ => Err(nix::Error::EIO),
        }
    }

    fn asked(text: &str) -> Result<Vec<Problem>> {
        unknown(&Config::parse("c.toml", text).unwrap().users, uid_of)
    }

    #[test]
    fn names_that_nobody_has_are_problems() {
        let text = "[users.ana]\nshares = 1\n[users.nosuch]\n[users.\"*\"]\n[users.4000000]\n[users.away]\n";
        let said: Vec<String> = asked(text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(said, ["c.toml:3:8: there is no user \"nosuch\" on this machine: nobody is capped by it"]);
    }

    #[test]
    fn one_user_has_one_entry() {
        let error = asked("[users.ana]\n[users.1001]\n").unwrap_err();
        let said = "c.toml:1:8: \"ana\" and \"1001\", at c.toml:2:8, are one user, whose uid is 1001";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn this_machine_knows_root() {
        assert_eq!((super::uid_of("root"), super::uid_of("no such user")), (Ok(Some(0)), Ok(None)));
    }
}
