//! Step 5, for shares in mode mps: NVIDIA's control daemon (nvidia-cuda-mps-control(1)), one for each GPU or MIG device,
//! kept by a supervisor. That is a process of its own (`divvy mps supervise`), so that a restart of `divvy serve` harms no
//! client, and a driver that hangs holds up nothing but its own device.
//!
//! - `settings`: what one control daemon shall be
//! - `place`: its directories
//! - `protocol`: what is said to its supervisor
//! - `guard`: what is preloaded into the control daemon, and whether that works

#![allow(dead_code)]

pub mod guard;
pub mod place;
pub mod protocol;
pub mod settings;
