//! What nodes say about a container: which ones its pools brought and are not its own, and which ones it has past what
//! it asks for. By path in the container: a node under another path is the kernel's to deny.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::serve::leases::stock::{GroupId, Index, Stock, Wanted, identity, nodes};

/// Nodes that the request's pools bring and that neither the granted devices have nor anything else that the container
/// has and that needs no lease.
pub fn to_remove(stock: &Stock, wanted: &Wanted, granted: &[Index], has: &[PathBuf]) -> Vec<PathBuf> {
    let mut remove: BTreeSet<&PathBuf> =
        wanted.pools.iter().flat_map(|(group, _)| &stock.group(*group).nodes).collect();
    let beside = unleased(stock, wanted, has);
    for index in granted.iter().copied().chain(beside) {
        for node in nodes(stock.device(index)) {
            remove.remove(node);
        }
    }
    remove.into_iter().cloned().collect()
}

/// Whether something has to be removed whichever devices are granted: the pools bring more GPUs and MIG devices than
/// the request can get.
pub fn leaves_some(stock: &Stock, wanted: &Wanted, has: &[PathBuf]) -> bool {
    let picks = wanted.pools.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
    let mut brought: BTreeSet<&Path> = wanted
        .pools
        .iter()
        .flat_map(|(group, _)| &stock.group(*group).devices)
        .filter_map(|index| identity(stock.device(*index)))
        .collect();
    for index in wanted.named.iter().copied().chain(unleased(stock, wanted, has)) {
        if let Some(node) = identity(stock.device(index)) {
            brought.remove(node);
        }
    }
    u64::try_from(brought.len()).unwrap_or(u64::MAX) > picks
}

/// A node of a leased device that the container has and that nothing of what it asks for brings.
pub fn past_shares<'a>(stock: &Stock, wanted: &Wanted, has: &'a [PathBuf]) -> Option<(&'a PathBuf, Index)> {
    has.iter().find_map(|node| {
        let index = stock.identified_by(node)?;
        let is_past = stock.device(index).leased && !is_brought(stock, wanted, node);
        is_past.then_some((node, index))
    })
}

/// A GPU's or MIG device's node that nothing of what is asked for brings.
pub fn beside<'a>(stock: &Stock, wanted: &Wanted, has: &'a [PathBuf]) -> Option<&'a PathBuf> {
    let is_of_a_device = |node: &&PathBuf| stock.identified_by(node).is_some() || is_a_gpus(node);
    has.iter().filter(|node| !is_brought(stock, wanted, node)).find(is_of_a_device)
}

/// /dev/nvidia`<minor>`, which GPUs have that the plan leaves out too.
fn is_a_gpus(node: &Path) -> bool {
    let minor = node.to_str().and_then(|node| node.strip_prefix("/dev/nvidia"));
    minor.is_some_and(|minor| !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Devices without leases that the container has beside what it asks for.
fn unleased<'a>(
    stock: &'a Stock,
    wanted: &'a Wanted,
    has: &'a [PathBuf],
) -> impl Iterator<Item = Index> + 'a {
    has.iter()
        .filter(|node| !is_brought(stock, wanted, node))
        .filter_map(|node| stock.identified_by(node))
        .filter(|index| !stock.device(*index).leased)
}

fn is_brought(stock: &Stock, wanted: &Wanted, node: &PathBuf) -> bool {
    let by_pool = |(group, _): &(GroupId, u32)| stock.group(*group).nodes.contains(node);
    let by_name = |index: &Index| nodes(stock.device(*index)).any(|own| own == node);
    wanted.pools.iter().any(by_pool) || wanted.named.iter().any(by_name)
}
