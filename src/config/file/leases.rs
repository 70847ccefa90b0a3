//! What the file says about leases beside its devices: `[pool.NAME]`, `[users.NAME]` and `start_timeout`.

use hooks::args::LONGEST_START_TIMEOUT;
use serde::Deserialize;
use toml::Spanned;

use super::{RawQuantity, Source};
use crate::config::{Mistake, Order, PoolRule, UserRule, value};

/// The longest that a container's start may queue, in seconds: a week. What waits longer is forgotten.
const LONGEST_WAIT: u64 = 7 * 24 * 3600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPool {
    wait: Option<Spanned<RawQuantity>>,
    #[serde(default)]
    order: Order,
    per_container: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawUser {
    shares: Option<Spanned<i64>>,
    pools: Option<Vec<Spanned<String>>>,
}

impl Source<'_> {
    pub fn pool(&self, name: &Spanned<String>, pool: &RawPool) -> Result<PoolRule, Mistake> {
        value::pool_name(name.get_ref()).map_err(|why| self.mistake(name, format!("pool: {why}")))?;
        let wait = pool.wait.as_ref().map(|wait| self.duration(wait, "wait", LONGEST_WAIT)).transpose()?;
        let count = pool.per_container.as_ref().map(|count| self.count(count, "per_container"));
        Ok(PoolRule {
            name: name.get_ref().clone(),
            place: Some(self.place(name)),
            wait_seconds: wait.unwrap_or(0),
            order: pool.order,
            per_container: count.transpose()?,
        })
    }

    pub fn user(&self, name: &Spanned<String>, user: &RawUser) -> Result<UserRule, Mistake> {
        value::user(name.get_ref()).map_err(|why| self.mistake(name, format!("users: {why}")))?;
        let shares = user.shares.as_ref().map(|count| {
            u32::try_from(*count.get_ref()).map_err(|_| {
                self.mistake(count, format!("shares is {}: it is a number from 0", count.get_ref()))
            })
        });
        let pool = |pool: &Spanned<String>| {
            value::pool_name(pool.get_ref()).map_err(|why| self.mistake(pool, format!("pools: {why}")))?;
            Ok((pool.get_ref().clone(), self.place(pool)))
        };
        let pools = user.pools.as_ref().map(|pools| pools.iter().map(pool).collect());
        Ok(UserRule {
            user: name.get_ref().clone(),
            shares: shares.transpose()?,
            pools: pools.transpose()?,
            place: self.place(name),
        })
    }

    pub fn start_timeout(&self, text: &Spanned<RawQuantity>) -> Result<u32, Mistake> {
        let seconds = self.duration(text, "start_timeout", LONGEST_START_TIMEOUT.into())?;
        // It is no longer than that.
        Ok(u32::try_from(seconds).unwrap_or(LONGEST_START_TIMEOUT))
    }

    fn duration(&self, text: &Spanned<RawQuantity>, key: &str, longest: u64) -> Result<u64, Mistake> {
        let seconds = value::duration(&text.get_ref().0);
        let seconds = seconds.map_err(|why| self.mistake(text, format!("{key}: {why}")))?;
        if seconds <= longest {
            return Ok(seconds);
        }
        let what = format!("{key} is {:?}: {}h is the longest", text.get_ref().0, longest / 3600);
        Err(self.mistake(text, what))
    }

    /// What to do where settings stand without the name that they are of, or the name without its quotes:
    /// `[pool.mig-1g.10gb]` is a table `10gb` in `mig-1g` to TOML.
    pub fn table_name(&self, what: &str, offset: usize) -> Option<String> {
        if what.contains("struct RawPool") {
            return Some("settings of a pool stand under its name: [pool.shared]".into());
        }
        if what.contains("struct RawUser") {
            return Some("settings of a user stand under the name: [users.ana], or [users.\"*\"]".into());
        }
        let start = self.text.get(..offset)?.rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text.get(start..)?.lines().next()?.trim();
        let path = line.strip_prefix('[')?.split_once(']')?.0;
        let (table, name) = path.split_once('.')?;
        if (table, name) == ("users", "*") {
            return Some("the star stands in quotes: [users.\"*\"]".into());
        }
        let is_split =
            ["pool", "users"].contains(&table) && name.contains('.') && !name.contains(['"', '\'']);
        is_split.then(|| format!("a name with a dot in it stands in quotes: [{table}.\"{name}\"]"))
    }
}
