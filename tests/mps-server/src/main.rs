//! Stands in for nvidia-cuda-mps-server where there is no GPU: NVIDIA's own nvidia-cuda-mps-control (535 to 555) starts it
//! and speaks to it, so that tests see which limits arrive, and how the daemon's reader copes with a server that is slow,
//! in FAULT or gone.
//!
//! Its directory has two files, which tests make: `behaviour`, with words, and `received`, to which it adds lines of JSON.
//!
//! | word | it |
//! |---|---|
//! | `stuck` | does not say that it is ready, as long as the word is there |
//! | `broken` | ends before that, with status 1 |
//! | `fault` | answers FAULT, as long as the word is there |
//! | `silent` | takes clients, and answers its daemon nothing |
//!
//! What it does is the protocol of version 2 as it goes over the wire (SOCK_SEQPACKET), and no more: it computes nothing,
//! and a client is a connection.

mod daemon;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    match daemon::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mps-server: {error}");
            ExitCode::FAILURE
        }
    }
}
