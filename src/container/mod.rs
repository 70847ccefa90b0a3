//! A container as the kernel shows it, whatever anybody says of it: its first process, namespaces and cgroup; who asks
//! on its behalf; what its cgroup denies. And, for people, what its engine calls it.
//!
//! - `process`: what /proc says of a process
//! - `person`: whose a user id is
//! - `caller`: whose container a process is of, and whether a caller may ask for it
//! - `cgroup`: the cgroup that is a container's own; whether it is empty; its end
//! - `deny`: devices that a container's cgroup denies
//! - `names`: engine and name, which nothing is decided by

pub mod caller;
pub mod cgroup;
pub mod deny;
pub mod names;
pub mod person;
pub mod process;
