//! The guard: preloaded into NVIDIA's MPS control daemon (nvidia-cuda-mps-control(1)), it lets nobody who comes over the
//! socket `control` be heard as anything but a CUDA client. Containers have that socket, so that CUDA reaches MPS, and
//! whoever has it may as well say that it is the command line of an administrator. Without the guard, root of a container
//! without any capability is obeyed there, as tried with the programs of 535.261.03, 550.163.01 and 555.58.02:
//!
//! | command | root | another user |
//! |---|---|---|
//! | `set_active_thread_percentage SERVER 90` | obeyed | obeyed by 535 |
//! | `set_device_pinned_mem_limit SERVER 0 80G` | obeyed | obeyed by 535 |
//! | `terminate_client SERVER PID` | obeyed | obeyed by 535 |
//! | `shutdown_server SERVER`, with `-f` too | obeyed | refused |
//! | `start_server -uid N` | obeyed | refused |
//! | `set_default_...`, `quit` | refused | refused |
//! | `get_...`, `ps` | answered | answered |
//!
//! The daemon reads what it is told with recvmsg(2), which this library replaces. It sees what the daemon sees, in the
//! same buffer, so the two cannot take it for different things; and of a client that is let in it sees nothing more,
//! for the server serves it from then on. Everything else goes to the kernel as it was.
//!
//! - `judge`: who is heard, and what may be said till then
//! - `admitted`: the connections that are
//! - `silence`: how long a stranger is waited for, and who was silent not long ago
//! - `kernel`: what is replaced in the daemon, and all system calls; all unsafe code
//!
//! Where the daemon serves one user at a time (before 555), the supervisor says whom (DIVVY_MPS_USER), and clients of
//! others are not heard either: the daemon would keep them waiting without a word, or replace the server for them.
//!
//! While a stranger is waited for nobody else is heard. So it is a second and a half at most, and ten milliseconds for those of
//! a container that was silent within the last minute. Nobody is refused for that: a message that is there is read.
//!
//! It must never fail open: who or what it cannot find out is refused.

mod admitted;
mod judge;
mod kernel;
mod silence;
