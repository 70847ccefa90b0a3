//! Whether a request could ever be granted, if nobody held anything: what is wrong with it, with its container or with
//! its user's right to it.

use hooks::lease::{Container, Request};

use crate::serve::leases::book::Barred;
use crate::serve::leases::brought;
use crate::serve::leases::choose;
use crate::serve::leases::refusal::Reason;
use crate::serve::leases::stock::{Stock, View, Wanted};

/// What a request wants of the plan.
///
/// # Errors
/// With the reason for which no wait would help.
pub fn admit(
    stock: &Stock,
    request: &Request,
    container: &Container,
    user: Option<&str>,
) -> Result<Wanted, Reason> {
    if let Some(why) = request.unbound {
        return Err(Reason::Unbound(why));
    }
    let wanted = stock.resolve(&request.devices).map_err(Reason::Unknown)?;
    if wanted == Wanted::default() {
        return Err(Reason::Nothing);
    }
    whole_and_share(stock, &wanted)?;
    let mps = mps_alone(stock, &wanted)?;
    if let Some((node, index)) = brought::past_shares(stock, &wanted, &request.nodes) {
        let (gpu, is_cut) = (stock.device(index).gpu, stock.is_cut(index));
        return Err(Reason::PastShares { node: node.clone(), gpu, is_cut });
    }
    if let Some(share) = mps
        && let Some(node) = brought::beside(stock, &wanted, &request.nodes)
    {
        return Err(Reason::MpsBeside { share, node: node.clone() });
    }
    per_container(stock, &wanted)?;
    may_hold(stock, &wanted, container, user)?;
    if !choose::is_possible(stock, View::Unheld, &Barred::default(), &wanted) {
        let pools = wanted.pools.iter().map(|(group, asked)| {
            let group = stock.group(*group);
            (group.pool.name.clone(), *asked, group.devices.len())
        });
        return Err(Reason::TooMany { pools: pools.collect() });
    }
    if container.uid == 0
        && container.cgroup.is_none()
        && brought::leaves_some(stock, &wanted, &request.nodes)
    {
        return Err(no_cgroup(stock, &wanted));
    }
    Ok(wanted)
}

/// What a pool brings and does not grant can be denied in a cgroup alone.
pub fn no_cgroup(stock: &Stock, wanted: &Wanted) -> Reason {
    let pools = wanted.pools.iter().map(|(group, _)| stock.group(*group).pool.name.clone());
    Reason::NoCgroup { pools: pools.collect() }
}

fn whole_and_share(stock: &Stock, wanted: &Wanted) -> Result<(), Reason> {
    for whole in wanted.named.iter().filter(|index| !stock.is_share(**index)) {
        let is_share = |other: &&usize| *other != whole && stock.exclude_each_other(*whole, **other);
        if let Some(share) = wanted.named.iter().find(is_share) {
            let name = |index: &usize| stock.device(*index).name.clone();
            return Err(Reason::WholeAndShare { whole: name(whole), share: name(share) });
        }
    }
    Ok(())
}

/// The name of what may be a share of an MPS server. A process has one pipe directory (nvidia-cuda-mps-control(1)), and
/// the server behind it one device.
fn mps_alone(stock: &Stock, wanted: &Wanted) -> Result<Option<String>, Reason> {
    let named = wanted.named.iter().map(|index| (stock.device(*index).name.clone(), stock.is_mps(*index)));
    let pools = wanted.pools.iter().flat_map(|(group, asked)| {
        let group = stock.group(*group);
        let is_mps = group.devices.iter().any(|index| stock.is_mps(*index));
        let asked = usize::try_from(*asked).unwrap_or(usize::MAX);
        std::iter::repeat_n((group.pool.name.clone(), is_mps), asked)
    });
    let mut all: Vec<_> = named.chain(pools).collect();
    let Some(place) = all.iter().position(|(_, is_mps)| *is_mps) else { return Ok(None) };
    let (share, _) = all.remove(place);
    if all.is_empty() {
        return Ok(Some(share));
    }
    Err(Reason::MpsAlone { share, others: all.into_iter().map(|(name, _)| name).collect() })
}

fn per_container(stock: &Stock, wanted: &Wanted) -> Result<(), Reason> {
    for (group, asked) in wanted.of_groups(stock) {
        let pool = &stock.group(group).pool;
        if let Some(most) = pool.per_container.filter(|most| asked > *most) {
            return Err(Reason::PerContainer { pool: pool.name.clone(), asked, most });
        }
    }
    Ok(())
}

fn may_hold(stock: &Stock, wanted: &Wanted, container: &Container, user: Option<&str>) -> Result<(), Reason> {
    let Some(cap) = stock.cap(container.uid, user) else { return Ok(()) };
    if let Some(pools) = &cap.pools {
        let is_theirs = |group| pools.contains(&stock.group(group).pool.name);
        let named = wanted.named.iter().filter(|index| !stock.group_of(**index).is_some_and(is_theirs));
        let asked = wanted.pools.iter().filter(|(group, _)| !is_theirs(*group));
        let devices: Vec<_> = named
            .map(|index| stock.device(*index).name.clone())
            .chain(asked.map(|(group, _)| stock.group(*group).pool.name.clone()))
            .collect();
        if !devices.is_empty() {
            return Err(Reason::NotForUser { devices, pools: pools.clone() });
        }
    }
    match cap.shares {
        Some(most) if wanted.count() > most => Err(Reason::CapBelow { asked: wanted.count(), most }),
        _ => Ok(()),
    }
}
