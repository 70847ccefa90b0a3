//! What nvidia-cuda-mps-control(1) answers, read. It ends with 0 whatever became of a command, so that its words are all
//! that tells. Tried with 535, 550 and 555.

/// How a server is (`get_server_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It starts, and serves nobody yet.
    Initializing,
    /// It serves.
    Active,
    /// A client's fault ended all work; it serves nobody until all clients are gone.
    Fault,
}

/// Process ids, a line each: of `get_server_list` and `get_client_list`. What is none, as `Server 12 not found`, is passed
/// over.
pub fn pids(text: &str) -> Vec<i32> {
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).collect()
}

/// None where the command is not known: drivers before 550.
pub fn state(text: &str) -> Option<ServerState> {
    match text.trim() {
        "ACTIVE" => Some(ServerState::Active),
        "FAULT" => Some(ServerState::Fault),
        text if text.starts_with("Unknown command") => None,
        _ => Some(ServerState::Initializing),
    }
}

/// Whether an active thread percentage that was read back is this one. It comes with one decimal.
pub fn is_percentage(text: &str, percentage: u32) -> bool {
    text.trim() == format!("{percentage}.0")
}

/// Whether a memory limit that was read back is this one, MiB: from 1024 on, it comes in whole GiB.
pub fn is_memory(text: &str, mib: u64) -> bool {
    text.trim() == if mib < 1024 { format!("{mib}M") } else { format!("{}G", mib / 1024) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_ids() {
        for (text, expected) in [
            ("", vec![]),
            ("4711\n", vec![4711]),
            ("4711\n12", vec![4711, 12]),
            ("Server 4711 not found\n", vec![]),
            ("0\n-1\n99999999999\n", vec![]),
        ] {
            assert_eq!(pids(text), expected, "{text:?}");
        }
    }

    #[test]
    fn states_of_servers() {
        for (text, expected) in [
            ("ACTIVE\n", Some(ServerState::Active)),
            ("FAULT\n", Some(ServerState::Fault)),
            ("INITIALIZING\n", Some(ServerState::Initializing)),
            ("", Some(ServerState::Initializing)),
            ("Server 7 not found\n", Some(ServerState::Initializing)),
            ("Unknown command \"get_server_status\"\n", None),
        ] {
            assert_eq!(state(text), expected, "{text:?}");
        }
    }

    #[test]
    fn limits_as_they_come_back() {
        for (text, percentage, expected) in
            [("33.0\n", 33, true), ("100.0", 100, true), ("33.5", 33, false), ("", 33, false)]
        {
            assert_eq!(is_percentage(text, percentage), expected, "{text:?}");
        }
        for (text, mib, expected) in [
            ("1M\n", 1, true),
            ("1023M", 1023, true),
            ("1G", 1024, true),
            ("1G", 1025, true),
            ("10G", 10240, true),
            ("976G", 999_999, true),
            ("", 10, false),
            ("17179869183G", 10, false),
        ] {
            assert_eq!(is_memory(text, mib), expected, "{text:?}");
        }
    }
}
