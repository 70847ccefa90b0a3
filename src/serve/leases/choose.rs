//! Which free devices a request gets from pools: the ones that their pool's order prefers, as long as what else is asked
//! for can still be had. A GPU that is leased as a whole and its shares are in each other's way, so the choice for one
//! pool may cost another.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::plan::pools::Order;
use crate::serve::leases::book::Barred;
use crate::serve::leases::stock::{GroupId, Index, Stock, View, Wanted};

/// Most combinations that are held in mind. A host has some GPUs whose shares and whole are both in pools, most of them
/// alike; past this many a request is taken for one that cannot be met.
const MOST_STATES: usize = 4096;

/// Whether a request's pools have enough free devices, all at once, beside those that it names and on none that is
/// `barred`.
pub fn is_possible(stock: &Stock, view: View, barred: &Barred, wanted: &Wanted) -> bool {
    // A single pool is all shares or all whole, so its devices are not in each other's way.
    match wanted.pools.as_slice() {
        [] => true,
        [(group, count)] => free_beside_named(stock, view, barred, wanted, *group) >= *count,
        _ => Choice::new(stock, view, barred, wanted).is_possible(),
    }
}

/// Devices for a request's pools beside those that it names; none if they do not have enough. Those that are `last` are
/// taken where there is no other.
pub fn choose(
    stock: &Stock,
    view: View,
    barred: &Barred,
    last: &BTreeSet<String>,
    wanted: &Wanted,
) -> Option<Vec<(GroupId, Index)>> {
    let mut choice = Choice::new(stock, view, barred, wanted);
    choice.is_possible().then_some(())?;
    let mut on_gpus = stock.on_gpus().clone();
    for index in &wanted.named {
        *on_gpus.entry(stock.device(*index).gpu).or_default() += 1;
    }
    let mut chosen = Vec::new();
    for line in 0..choice.lines.len() {
        let group = choice.lines[line].group;
        while choice.lines[line].count > 0 {
            let index = choice.best(line, &on_gpus, last)?;
            choice.take(line, index);
            *on_gpus.entry(stock.device(index).gpu).or_default() += 1;
            chosen.push((group, index));
        }
    }
    Some(chosen)
}

/// How many devices of a request's pool nobody has and none of its named devices excludes.
pub fn free_beside_named(stock: &Stock, view: View, barred: &Barred, wanted: &Wanted, group: GroupId) -> u32 {
    if wanted.named.is_empty() && barred.is_empty() {
        return stock.free_in(group, view);
    }
    let free = free(stock, view, barred, wanted, group).count();
    u32::try_from(free).unwrap_or(u32::MAX)
}

fn free<'a>(
    stock: &'a Stock,
    view: View,
    barred: &'a Barred,
    wanted: &'a Wanted,
    group: GroupId,
) -> impl Iterator<Item = Index> + 'a {
    let is_beside =
        move |index: Index| !wanted.named.iter().any(|named| stock.exclude_each_other(*named, index));
    let devices = stock.group(group).devices.iter().copied();
    let may_serve = move |index: Index| !barred.contains(&stock.device(index).uuid);
    devices.filter(move |index| stock.is_free(*index, view) && is_beside(*index) && may_serve(*index))
}

#[derive(Clone)]
struct Choice<'a> {
    stock: &'a Stock,
    lines: Vec<Line>,
}

/// One pool of a request.
#[derive(Clone)]
struct Line {
    group: GroupId,
    count: usize,
    candidates: Vec<Index>,
}

/// What one GPU or MIG device could give.
#[derive(Default)]
struct Offer {
    /// Itself, to this line.
    whole: Option<usize>,
    /// Shares, to each line.
    shares: Vec<usize>,
}

impl<'a> Choice<'a> {
    fn new(stock: &'a Stock, view: View, barred: &'a Barred, wanted: &'a Wanted) -> Self {
        let line = |(group, count): &(GroupId, u32)| Line {
            group: *group,
            count: usize::try_from(*count).unwrap_or(usize::MAX),
            candidates: free(stock, view, barred, wanted, *group).collect(),
        };
        Self { stock, lines: wanted.pools.iter().map(line).collect() }
    }

    /// The candidate that the pool's order prefers among those that leave enough for the rest.
    fn best(&self, line: usize, on_gpus: &BTreeMap<u32, u32>, last: &BTreeSet<String>) -> Option<Index> {
        let order = self.stock.group(self.lines[line].group).pool.order;
        let mut candidates = self.lines[line].candidates.clone();
        let leases = |index: &Index| on_gpus.get(&self.stock.device(*index).gpu).copied().unwrap_or_default();
        let is_last = |index: &Index| last.contains(&self.stock.device(*index).uuid);
        match order {
            Order::Spread => candidates.sort_by_key(|index| (is_last(index), leases(index), *index)),
            Order::Pack => candidates.sort_by_key(|index| (is_last(index), Reverse(leases(index)), *index)),
        }
        // One candidate of a unit leaves as much as another of the same pool.
        let mut refused = BTreeSet::new();
        candidates.into_iter().find(|index| {
            let uuid = &self.stock.device(*index).uuid;
            if refused.contains(uuid) {
                return false;
            }
            let mut after = self.clone();
            after.take(line, *index);
            let is_possible = after.is_possible();
            if !is_possible {
                refused.insert(uuid);
            }
            is_possible
        })
    }

    fn take(&mut self, line: usize, index: Index) {
        self.lines[line].count -= 1;
        for line in &mut self.lines {
            line.candidates.retain(|other| !self.stock.exclude_each_other(index, *other));
        }
    }

    /// Whether every line can be served at once.
    fn is_possible(&self) -> bool {
        if self.lines.iter().any(|line| line.candidates.len() < line.count) {
            return false;
        }
        // The devices of a single pool are not in each other's way.
        if self.lines.len() < 2 {
            return true;
        }
        let mut missing: Vec<usize> = self.lines.iter().map(|line| line.count).collect();
        let (either_or, rest): (Vec<_>, Vec<_>) =
            self.offers().into_values().partition(|offer| offer.whole.is_some() && offer.has_shares());
        for offer in rest {
            missing = match offer.whole {
                Some(line) => with_whole(&missing, line),
                None => with_shares(&missing, &offer.shares),
            };
        }
        let mut states = BTreeSet::from([missing]);
        for offer in either_or {
            let Some(whole) = offer.whole else { continue };
            states = states
                .iter()
                .flat_map(|missing| [with_whole(missing, whole), with_shares(missing, &offer.shares)])
                .take(MOST_STATES)
                .collect();
        }
        states.iter().any(|missing| missing.iter().all(|count| *count == 0))
    }

    fn offers(&self) -> BTreeMap<&str, Offer> {
        let mut offers = BTreeMap::<&str, Offer>::new();
        for (line, Line { candidates, .. }) in self.lines.iter().enumerate() {
            for index in candidates {
                let offer = offers.entry(&self.stock.device(*index).uuid).or_default();
                if self.stock.is_share(*index) {
                    offer.shares.resize(self.lines.len(), 0);
                    offer.shares[line] += 1;
                } else {
                    offer.whole = Some(line);
                }
            }
        }
        offers
    }
}

impl Offer {
    fn has_shares(&self) -> bool {
        !self.shares.is_empty()
    }
}

fn with_whole(missing: &[usize], line: usize) -> Vec<usize> {
    let mut missing = missing.to_vec();
    missing[line] = missing[line].saturating_sub(1);
    missing
}

fn with_shares(missing: &[usize], shares: &[usize]) -> Vec<usize> {
    missing.iter().zip(shares).map(|(missing, shares)| missing.saturating_sub(*shares)).collect()
}
