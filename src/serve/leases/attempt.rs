//! Whether a request can be granted now, and what it lacks if not.

use std::collections::BTreeSet;

use hooks::lease::Container;

use crate::plan::kept::KeptDevice;
use crate::serve::leases::book::{Barred, Book};
use crate::serve::leases::choose;
use crate::serve::leases::queue::Waiter;
use crate::serve::leases::refusal::{FreeIn, Full, Held, MOST_LISTED, Reason, Way};
use crate::serve::leases::stock::{Group, GroupId, Index, Stock, View, Wanted};

/// What keeps a request from being granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Its user holds as many devices as they may.
    Cap,
    /// Devices that it names are held.
    Named(Vec<Index>),
    /// Pools have too few free devices, or others come before it.
    Pools(Vec<GroupId>),
}

impl Lack {
    /// The pools that it waits for.
    pub fn pools(&self) -> &[GroupId] {
        match self {
            Lack::Pools(pools) => pools,
            _ => &[],
        }
    }
}

/// Devices for a request's pools, if it can be granted. `before_it` are the pools that somebody waits for whose turn it
/// is first; `last` are UUIDs of devices that are chosen where there is no other.
///
/// # Errors
/// With what it lacks.
pub fn attempt(
    book: &Book,
    waiter: &Waiter,
    before_it: &BTreeSet<GroupId>,
    last: &BTreeSet<String>,
) -> Result<Vec<(GroupId, Index)>, Lack> {
    check(book, waiter, View::Now, before_it)?;
    let (barred, wanted) = (barred(book, waiter, View::Now), &waiter.wanted);
    choose::choose(book.stock(), View::Now, &barred, last, wanted).ok_or_else(|| all_pools(wanted))
}

/// Whether a request could be granted.
///
/// # Errors
/// With what it lacks.
pub fn check(book: &Book, waiter: &Waiter, view: View, before_it: &BTreeSet<GroupId>) -> Result<(), Lack> {
    let (stock, wanted, container) = (book.stock(), &waiter.wanted, &waiter.ask.container);
    let most = stock.cap(container.uid, waiter.ask.user.as_deref()).and_then(|cap| cap.shares);
    let held = book.held_by(container.uid, view);
    if most.is_some_and(|most| held.saturating_add(wanted.count()) > most) {
        return Err(Lack::Cap);
    }
    let barred = barred(book, waiter, view);
    let taken: Vec<_> =
        wanted.named.iter().copied().filter(|index| !can_be_had(stock, *index, view, &barred)).collect();
    if !taken.is_empty() {
        return Err(Lack::Named(taken));
    }
    let lacks = |(group, count): &&(GroupId, u32)| {
        before_it.contains(group) || choose::free_beside_named(stock, view, &barred, wanted, *group) < *count
    };
    let lacking: Vec<_> = wanted.pools.iter().filter(lacks).map(|(group, _)| *group).collect();
    if !lacking.is_empty() {
        return Err(Lack::Pools(lacking));
    }
    if choose::is_possible(stock, view, &barred, wanted) { Ok(()) } else { Err(all_pools(wanted)) }
}

/// Devices that it cannot have a share of: by what others have there, or since their servers do not run for it.
fn barred(book: &Book, waiter: &Waiter, view: View) -> Barred {
    let mut barred = book.barred_to(&waiter.ask.container, view);
    barred.extend(waiter.tried.iter().map(|tried| tried.uuid.clone()));
    barred
}

fn can_be_had(stock: &Stock, index: Index, view: View, barred: &Barred) -> bool {
    stock.is_free(index, view) && !barred.contains(&stock.device(index).uuid)
}

/// As if it lacked all that it asks for by pools.
pub fn all_pools(wanted: &Wanted) -> Lack {
    Lack::Pools(wanted.pools.iter().map(|(group, _)| *group).collect())
}

/// The lack for a person. `waiting` is how many wait for a pool before it.
pub fn reason(book: &Book, waiter: &Waiter, lack: &Lack, waiting: &dyn Fn(GroupId) -> u32) -> Reason {
    let (stock, wanted, container) = (book.stock(), &waiter.wanted, &waiter.ask.container);
    let barred = barred(book, waiter, View::Now);
    match lack {
        Lack::Cap => {
            let cap = stock.cap(container.uid, waiter.ask.user.as_deref());
            Reason::CapReached {
                asked: wanted.count(),
                held: book.held_by(container.uid, View::Now),
                most: cap.and_then(|cap| cap.shares).unwrap_or_default(),
            }
        }
        Lack::Named(taken) => {
            let groups: BTreeSet<_> = taken.iter().filter_map(|index| stock.group_of(*index)).collect();
            Reason::Taken {
                held: taken
                    .iter()
                    .take(MOST_LISTED)
                    .filter_map(|index| held(book, *index, container))
                    .collect(),
                more: taken.len().saturating_sub(MOST_LISTED),
                free: groups.into_iter().map(|group| free_in(stock, group, &barred)).collect(),
            }
        }
        Lack::Pools(groups) if !waiter.tried.is_empty() => {
            let devices = groups.iter().flat_map(|group| stock.group(*group).devices.iter().copied());
            let is_tried = |index: &Index| waiter.has_tried(&stock.device(*index).uuid);
            let taken =
                devices.filter(|index| !is_tried(index) && !can_be_had(stock, *index, View::Now, &barred));
            let (held, more) = by_whom(book, container, taken.collect());
            Reason::Unserved { tried: waiter.tried.clone(), held, more }
        }
        Lack::Pools(groups) => {
            let full: Vec<_> = wanted
                .pools
                .iter()
                .filter(|(group, _)| groups.contains(group))
                .map(|(group, asked)| full(book, container, (*group, *asked), waiting(*group)))
                .collect();
            if full.iter().all(|full| full.free >= full.asked && full.waiting == 0) {
                return Reason::NotTogether { pools: full.into_iter().map(|full| full.pool).collect() };
            }
            Reason::Full(full)
        }
    }
}

fn full(book: &Book, container: &Container, (group, asked): (GroupId, u32), waiting: u32) -> Full {
    let stock = book.stock();
    let barred = book.barred_to(container, View::Now);
    let Group { pool, devices, .. } = stock.group(group);
    let taken: Vec<_> =
        devices.iter().copied().filter(|index| !can_be_had(stock, *index, View::Now, &barred)).collect();
    let free = devices.len() - taken.len();
    let (held, more) = by_whom(book, container, taken);
    Full {
        pool: pool.name.clone(),
        asked,
        devices: devices.len(),
        free: u32::try_from(free).unwrap_or(u32::MAX),
        can_queue: pool.wait_seconds > 0,
        waiting,
        held,
        more,
    }
}

/// Who has the first of these devices, and how many more there are.
fn by_whom(book: &Book, container: &Container, mut taken: Vec<Index>) -> (Vec<Held>, usize) {
    let stock = book.stock();
    let mut by = Vec::<Held>::new();
    // A GPU that is held as a whole is in the way of many shares, and named once.
    while let Some(held) =
        taken.first().filter(|_| by.len() < MOST_LISTED).and_then(|first| held(book, *first, container))
    {
        let first = taken.remove(0);
        if held.way != Way::Itself {
            taken.retain(|index| stock.device(*index).uuid != stock.device(first).uuid);
        }
        by.push(held);
    }
    (by, taken.len())
}

fn held(book: &Book, index: Index, container: &Container) -> Option<Held> {
    let stock = book.stock();
    let device = spoken(&stock.device(index).name, stock.is_share(index));
    let Some((leased, held)) = book.holder_of(index) else {
        let KeptDevice { uuid, gpu, share, .. } = stock.device(index);
        let held = book.who_bars(uuid, container)?;
        let whole = share.as_ref().map_or_else(|| format!("GPU {gpu}"), |share| spoken(&share.of, false));
        let is_alike = held.lease.mps.is_some() == stock.mps(uuid).is_some();
        let way = if is_alike { Way::OtherUser(whole) } else { Way::OtherMode(whole) };
        return Some(Held { device, way, holder: held.holder() });
    };
    let name = spoken(&leased.name.name, leased.is_share);
    let way = match (leased.is_share, stock.is_share(index)) {
        (true, false) => Way::Share(name),
        (false, true) => Way::Whole(name),
        _ => Way::Itself,
    };
    Some(Held { device, way, holder: held.holder() })
}

/// A share says by its name what it is, and a number says nothing.
fn spoken(name: &str, is_share: bool) -> String {
    match (is_share, name.contains(':')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("MIG device {name}"),
        (false, false) => format!("GPU {name}"),
    }
}

fn free_in(stock: &Stock, group: GroupId, barred: &Barred) -> FreeIn {
    let Group { pool, devices, .. } = stock.group(group);
    let free = devices.iter().filter(|index| can_be_had(stock, **index, View::Now, barred));
    let devices = free.map(|index| stock.device(*index).name.clone()).collect();
    FreeIn { pool: pool.name.clone(), devices }
}
