//! When a container is gone: its first process, which a pidfd tells without a look at the clock, and then the last
//! process of its cgroup, which is there a moment longer at most, unless somebody shares the host's process ids.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;
use tracing::error;

use super::leases::Key;
use super::message::Message;
use crate::container::cgroup;

const FIRST_LOOK: Duration = Duration::from_millis(5);
const SELDOM: Duration = Duration::from_secs(1);

/// Returns when the process of a pidfd is gone.
pub async fn ended(pidfd: &AsyncFd<OwnedFd>) {
    if let Err(error) = pidfd.readable().await {
        error!("a container's end goes unnoticed until the next request: {error}");
        std::future::pending().await
    }
}

/// Tells of a container's end; `pidfd` is none where its first process was gone before.
pub async fn container(
    key: Key,
    pidfd: Option<Arc<AsyncFd<OwnedFd>>>,
    cgroup: Option<PathBuf>,
    to: UnboundedSender<Message>,
) {
    if let Some(pidfd) = pidfd {
        ended(&pidfd).await;
    }
    // Whoever listened is gone with the daemon.
    let _ = to.send(Message::FirstProcessGone(key));
    let mut pause = FIRST_LOOK;
    while let Some(path) = &cgroup
        && !is_empty(path)
    {
        sleep(pause).await;
        pause = (pause * 2).min(SELDOM);
    }
    let _ = to.send(Message::Gone(key));
}

/// A cgroup that cannot be looked at keeps its lease: too long is better than two containers on one share.
pub fn is_empty(cgroup: &Path) -> bool {
    cgroup::is_empty(cgroup).unwrap_or_else(|error| {
        error!(cgroup = %cgroup.display(), "cannot see whether a container is gone: {error}");
        false
    })
}
