//! Step 5: the daemon, the one authority over leases. A hook asks over a socket when a container starts; a lease ends
//! with the container. Modules in the order of a request:
//!
//! - `caller`: which container it is about and who asks, as the kernel says, by `process` and `cgroup`
//! - `names`: what people call it
//! - `leases`: who holds what; pure
//! - `refusal`: why not, and what to do, for a person
//! - `deny`: devices that a container's cgroup denies
//! - `store`: leases as files
//! - `refused`: the last refusals, for who asks later

pub mod caller;
pub mod cgroup;
pub mod deny;
pub mod names;
pub mod process;
pub mod refused;
