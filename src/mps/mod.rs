//! Step 5, for shares in mode mps: NVIDIA's control daemon (nvidia-cuda-mps-control(1)), one for each GPU or MIG device,
//! kept by a supervisor. That is a process of its own (`divvy mps supervise`), so that a restart of `divvy serve` harms no
//! client, and a driver that hangs holds up nothing but its own device.
//!
//! - `settings`: what one control daemon shall be; `kept`: the same on disk
//! - `place`: its directories; `lock`: who is at work there
//! - `protocol`: what is said to its supervisor; `client`: by whom
//! - `start`: how there comes to be one
//! - `log`: what it says

#![allow(dead_code)]

pub mod client;
mod kept;
mod lock;
mod log;
pub mod place;
pub mod protocol;
pub mod settings;
mod start;
