//! The memory and SMs of a device, divided among shares that run at once: what the driver and the MPS server keep is
//! subtracted first, and everything is rounded down to what MPS counts in, MiB and whole percents.

use crate::config::{Rule, ShareRule};

use super::MpsShare;
use crate::plan::nodes::LeftOut;
use crate::plan::shares::memory_of;
use crate::plan::{Device, Unit};

/// What the MPS server's own context takes of the device before any client comes, MiB: 35 and more were measured.
const SERVER_CONTEXT_MIB: u64 = 64;

/// A device's memory as its shares can have it, MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divided {
    total: u64,
    /// None where the driver does not tell.
    reserved: Option<u64>,
}

impl Divided {
    /// Fails where nobody knows how much there is.
    pub fn of(whole: &Device, unit: &Unit<'_>) -> Result<Self, LeftOut> {
        let total = memory_of(whole)? >> 20;
        Ok(Self { total, reserved: unit.reserved_memory_bytes().map(|bytes| bytes.div_ceil(1 << 20)) })
    }

    /// What its shares have together.
    pub fn for_shares(self) -> u64 {
        self.total.saturating_sub(self.reserved.unwrap_or(0)).saturating_sub(SERVER_CONTEXT_MIB)
    }
}

impl std::fmt::Display for Divided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let driver = match self.reserved {
            Some(mib) => format!("{mib}MiB of the driver's"),
            None => "what the driver keeps, which it does not tell,".into(),
        };
        write!(f, "{}MiB without {driver} and {SERVER_CONTEXT_MIB}MiB of the MPS server's", self.total)
    }
}

/// What the rule says, and for shares of which it says nothing equal parts of the rest, rounded down.
pub fn parts(rule: &Rule, divided: Divided) -> Result<Vec<MpsShare>, LeftOut> {
    let asked = rule.shares.iter().map(|share| (share.memory_bytes.map(|bytes| bytes >> 20), share.replicas));
    let memory_rest = equal_part(divided.for_shares(), asked);
    let asked = rule.shares.iter().map(|share| (share.sm_percent.map(u64::from), share.replicas));
    let percent_rest = equal_part(100, asked);
    let part = |share: &ShareRule| {
        let memory_mib = share.memory_bytes.map_or(memory_rest, |bytes| bytes >> 20);
        let percent = share.sm_percent.map_or(percent_rest, u64::from);
        let has = format!("1MiB of the {}MiB for them ({divided})", divided.for_shares());
        is_something(share, rule, memory_mib, &has, "memory")?;
        is_something(share, rule, percent, "1 % of the SMs, the smallest part that MPS knows", "sm_percent")?;
        let active_thread_percentage = u32::try_from(percent).unwrap_or(100);
        Ok(MpsShare { active_thread_percentage, memory_mib, priority: share.priority })
    };
    let parts = rule.shares.iter().map(part).collect::<Result<Vec<_>, LeftOut>>()?;
    check_memory(rule, &parts, divided)?;
    Ok(parts)
}

fn is_something(share: &ShareRule, rule: &Rule, part: u64, least: &str, key: &str) -> Result<(), LeftOut> {
    if part > 0 {
        return Ok(());
    }
    Err(LeftOut {
        why: format!("its shares {:?} have less than {least}", share.name),
        hint: format!("say {key} of each at {}, or lower replicas", rule.place),
    })
}

/// What is left for each of those that ask for nothing, where each of the others has what it asks for.
fn equal_part(all: u64, asked: impl Iterator<Item = (Option<u64>, u32)>) -> u64 {
    let (mut left, mut without) = (all, 0);
    for (asked, replicas) in asked {
        match asked {
            Some(asked) => left = left.saturating_sub(asked.saturating_mul(replicas.into())),
            None => without += u64::from(replicas),
        }
    }
    left.checked_div(without).unwrap_or(0)
}

fn check_memory(rule: &Rule, parts: &[MpsShare], divided: Divided) -> Result<(), LeftOut> {
    let has = divided.for_shares();
    let all = rule.shares.iter().zip(parts);
    let together = all.fold(0_u64, |sum, (share, part)| {
        sum.saturating_add(part.memory_mib.saturating_mul(share.replicas.into()))
    });
    // A limit above what there is limits nothing, whatever is accepted.
    let is_beyond = parts.iter().any(|part| part.memory_mib > has);
    let overcommit = match (is_beyond, rule.overcommit) {
        (false, _) if together <= has => return Ok(()),
        (false, true) => return Ok(()),
        (false, false) => ", or say overcommit = true",
        (true, _) => "",
    };
    Err(LeftOut {
        why: format!(
            "its shares have {together}MiB of memory together, and it has {has}MiB for them ({divided})"
        ),
        hint: format!("lower memory at {}{overcommit}", rule.place),
    })
}

/// SMs come in pairs, and MPS rounds down: 25 % of 188 were 46. A client has a pair at least.
pub fn rounded(sms: u32, percent: u32) -> u32 {
    if percent >= 100 {
        return sms;
    }
    let part = u64::from(sms) * u64::from(percent) / 100;
    (u32::try_from(part).unwrap_or(sms) & !1).max(2).min(sms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sms_are_rounded_down_to_pairs() {
        for (sms, percent, rounded_to) in [
            (188, 25, 46),
            (132, 25, 32),
            (132, 100, 132),
            (14, 50, 6),
            (14, 1, 2),
            (1, 1, 1),
            (13, 99, 12),
            (13, 100, 13),
        ] {
            assert_eq!(rounded(sms, percent), rounded_to, "{percent} % of {sms}");
        }
    }

    #[test]
    fn what_nobody_asked_for_is_divided() {
        for (all, asked, each) in [
            (100, vec![(None, 3)], 33),
            (100, vec![(Some(40), 1), (None, 2)], 30),
            (100, vec![(Some(60), 2), (None, 1)], 0),
            (100, vec![(Some(50), 2)], 0),
            (100, vec![(Some(u64::MAX), 1024), (None, 1024)], 0),
        ] {
            assert_eq!(equal_part(all, asked.clone().into_iter()), each, "{all} {asked:?}");
        }
    }
}
