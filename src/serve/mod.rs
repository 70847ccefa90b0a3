//! Step 5: the daemon, the one authority over leases. A hook asks over a socket when a container starts; a lease ends
//! with the container. Modules in the order of a request:
//!
//! - `caller`: which container it is about and who asks, as the kernel says, by `process` and `cgroup`
//! - `names`: what people call it
//! - `leases`: who holds what; pure, and so are its parts: `admit` (what can never be granted), `attempt` (what cannot
//!   now), `choose` (which devices of a pool), `brought` (nodes), `book` (leases), `stock` (the plan), `queue`
//! - `refusal`: why not, and what to do, for a person
//! - `deny`: devices that a container's cgroup denies
//! - `store`: leases as files

mod admit;
mod attempt;
mod book;
mod brought;
pub mod caller;
pub mod cgroup;
mod choose;
pub mod deny;
pub mod leases;
pub mod names;
pub mod process;
mod queue;
pub mod refusal;
mod stock;

#[cfg(test)]
mod tests;
