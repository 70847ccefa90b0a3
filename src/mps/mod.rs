//! Step 5, for shares in mode mps: NVIDIA's control daemon (nvidia-cuda-mps-control(1)), one for each GPU or MIG device,
//! kept by a supervisor. That is a process of its own (`divvy mps supervise`), so that a restart of `divvy serve` harms no
//! client, and a driver that hangs holds up nothing but its own device.
//!
//! - `settings`: what one control daemon shall be; `kept`: the same on disk
//! - `place`: its directories; `lock`: who is at work there
//! - `protocol`: what is said to its supervisor; `client`: by whom; `start`: how there comes to be one
//! - `supervisor`: it hears requests; `ensure`: what it answers; `reason`: why not
//! - `keeper`: it keeps MPS; `look`: what it sees; `step`: what it does next
//! - `programs`, `launch`, `shared_memory`: a control daemon is started; `process`: and watched; `log`: what it says
//! - `guard`: what is preloaded into the control daemon, and whether that works
//! - `control`, `reply`: what it is asked, and what it answers
//! - `front`: what containers see of it
//! - `gpu`, `foreign`, `at_work`, `compute_mode`: who else is on the device, and that nobody is
//! - `blocked`: who keeps the control daemon busy

mod at_work;
mod blocked;
pub mod client;
mod compute_mode;
mod control;
mod ensure;
mod foreign;
mod front;
mod gpu;
mod guard;
mod keeper;
mod kept;
mod launch;
mod lock;
mod log;
mod look;
pub mod place;
mod process;
mod programs;
pub mod protocol;
mod reason;
mod reply;
pub mod settings;
mod shared_memory;
pub mod start;
mod step;
pub mod supervisor;
