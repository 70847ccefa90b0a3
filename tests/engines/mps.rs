//! MPS in real engines: containers with shares of devices whose control daemon and libcuda are NVIDIA's own. Two hosts are
//! laid out beside the others in the machine, each with a driver root, a plan and a daemon: `multi`, whose MPS server
//! serves all users, and `single`, whose serves one at a time. What stands in for the server is tests/mps-server.
//!
//! - `hosts`: the two, and what is known of MPS on their devices
//! - `wiring`: who has MPS, by what options and images, and whose processes the control daemon sees
//! - `recovery`: what ends divvy, the supervisor and the control daemon under containers that run
//! - `abuse`: what a container tries against the server, as docs/mps.md has it
//!
//! CUDA tells by one number: cuInit answers 805 where it met MPS that hung up, and without a GPU 100 where it did not.

pub mod abuse;
pub mod hosts;
pub mod recovery;
pub mod wiring;

/// What cuInit answers to a client of MPS, which the stand-in for the server hangs up on, and where a tombstone is.
pub const MET_MPS: &str = "805";
/// What it answers where it looks for a GPU by itself.
pub const ALONE: &str = "100";
/// In a container: starts CUDA as the first program finds it, and with nothing in its environment.
const CUDA_TWICE: &str = "probe cuda; env -i /usr/bin/probe cuda";
