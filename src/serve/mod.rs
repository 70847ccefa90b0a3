//! Step 5: the daemon, the one authority over leases. A hook asks over a socket when a container starts; a lease ends
//! with the container. What is decided is decided in `leases`; the rest asks the kernel and does what was decided.
//! Modules in the order of a request:
//!
//! - `listen`: the socket, systemd's or one of our own
//! - `connection`: one request, its answers, and the end
//! - `message`: what connections and ends of containers tell the daemon
//! - `plan_file`: the plan that is in force
//! - `leases`: who holds what, and why another does not; pure
//! - `grant`: a grant carried out
//! - `mps`: what supervisors of MPS servers are asked
//! - `store`: leases as files
//! - `refused`: the last refusals
//! - `waiting`: who waits, as a file
//! - `board`: that file, kept as the queue is
//! - `watch`: when a container is gone
//! - `daemon`: all of it together

mod board;
mod connection;
mod daemon;
mod grant;
mod leases;
mod listen;
mod message;
mod mps;
mod plan_file;
pub mod refused;
mod store;
pub mod waiting;
mod watch;

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;
use tracing::warn;

use crate::failure::Failure;
use listen::Listener;
use store::Store;

/// For each connection one that reads, and closes at the end; and some to spare.
const THREADS: usize = 1100;
/// Of each of these, in bytes.
const STACK: usize = 256 << 10;

/// Serves until SIGTERM or SIGINT.
pub fn run(state_dir: &Path) -> Result<()> {
    if !geteuid().is_root() {
        let error = anyhow::anyhow!("only root can tell whose containers are whose");
        return Err(Failure::new(error)
            .hint("sudo divvy serve, or systemctl enable --now divvy.socket")
            .into());
    }
    let store = Store::open(state_dir)?;
    let listener = Listener::open(state_dir)?;
    open_many_descriptors();
    // One thread decides, one thing after the other; those beside read what callers say.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(THREADS)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .context("cannot start")?;
    let served = runtime.block_on(daemon::serve(state_dir, store, listener));
    // Connections end with the process: to close one may take its caller's time.
    std::mem::forget(runtime);
    served
}

/// A lease has one descriptor, and so has a caller that waits: the usual 1024 are too few.
fn open_many_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!("no more than the usual number of leases: RLIMIT_NOFILE cannot be raised: {error}");
    }
}
