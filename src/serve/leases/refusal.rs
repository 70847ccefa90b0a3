//! Why a container gets nothing, in data first and then in words: who is in the way, what is free instead. What to do
//! about it is in `hint`.

mod hint;
mod holders;
mod unserved;

use std::path::PathBuf;

use hooks::lease::{Container, DeviceName, Unbound};

pub use unserved::{No, Unserved};

/// Most holders that a message lists.
pub const MOST_LISTED: usize = 3;

/// A request that was refused, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What it asked for.
    pub asked: Vec<DeviceName>,
    /// For whom.
    pub container: Container,
    /// Name of the container's user; none for root.
    pub user: Option<String>,
    /// When, in seconds since the epoch.
    pub at: u64,
}

/// Who has something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The container.
    pub container: Container,
    /// Name of its user, if known.
    pub user: Option<String>,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// Its first process is gone, and others of it are still there.
    pub is_ending: bool,
}

/// A device that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The device that was asked for, or is in the pool; one that is whole with its kind, as `GPU 5`.
    pub device: String,
    /// What is held.
    pub way: Way,
    /// Who has that.
    pub holder: Holder,
}

/// What keeps a device from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is held itself.
    Itself,
    /// The GPU or MIG device that it is a part of is held as a whole.
    Whole(String),
    /// A share of it is held.
    Share(String),
    /// The MPS server of the device that it is a part of, `GPU 0`, serves the holder's user alone.
    OtherUser(String),
    /// A share is held of the device that it is a part of, `GPU 0`, from before that was shared in another mode.
    OtherMode(String),
}

/// Devices of a pool that nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeIn {
    /// The pool.
    pub pool: String,
    /// Their names, in the plan's order.
    pub devices: Vec<String>,
}

/// A pool without enough free devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// The pool.
    pub pool: String,
    /// How many devices of it were asked for.
    pub asked: u32,
    /// How many there are.
    pub devices: usize,
    /// How many of them nobody has.
    pub free: u32,
    /// A start may queue for it.
    pub can_queue: bool,
    /// How many containers wait for the pool, in whose turn nobody comes.
    pub waiting: u32,
    /// Who has the others, in the plan's order: the first [`MOST_LISTED`].
    pub held: Vec<Held>,
    /// How many devices are held besides.
    pub more: usize,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No plan is in force.
    NoPlan {
        /// Where it would be.
        file: PathBuf,
    },
    /// A request for nothing.
    Nothing,
    /// The container has devices past what it asks for.
    Unbound(Unbound),
    /// Names that the plan does not have.
    Unknown(Vec<DeviceName>),
    /// A whole device and a share of it.
    WholeAndShare {
        /// The whole.
        whole: String,
        /// Its share.
        share: String,
    },
    /// A share of an MPS server and something else.
    MpsAlone {
        /// The share, or the pool that has some.
        share: String,
        /// The rest of what is asked for.
        others: Vec<String>,
    },
    /// A share of an MPS server in a container that has another GPU's node.
    MpsBeside {
        /// The share, or the pool that has some.
        share: String,
        /// The node in the container.
        node: PathBuf,
    },
    /// The container has a node of a leased device that it did not ask for.
    PastShares {
        /// The node in the container.
        node: PathBuf,
        /// NVML index of the GPU.
        gpu: u32,
        /// The GPU or MIG device is cut into shares; else it is leased as a whole.
        is_cut: bool,
    },
    /// More of a pool than one container may have.
    PerContainer {
        /// The pool.
        pool: String,
        /// How many were asked for.
        asked: u32,
        /// How many it may have.
        most: u32,
    },
    /// More than there are, if nobody had anything.
    TooMany {
        /// Pools, with how many were asked for and how many there are.
        pools: Vec<(String, u32, usize)>,
    },
    /// Devices that the user may not have.
    NotForUser {
        /// What is not allowed.
        devices: Vec<String>,
        /// Pools that are.
        pools: Vec<String>,
    },
    /// More at once than the user may hold.
    CapBelow {
        /// How many were asked for.
        asked: u32,
        /// How many the user may hold.
        most: u32,
    },
    /// The user holds so many that these would be too many.
    CapReached {
        /// How many were asked for.
        asked: u32,
        /// How many the user holds.
        held: u32,
        /// How many the user may hold.
        most: u32,
    },
    /// Nodes that were not granted could not be denied.
    NoCgroup {
        /// The pools that bring them.
        pools: Vec<String>,
    },
    /// The container has, or waits for, something else.
    AsksAnother {
        /// What that is.
        before: Vec<DeviceName>,
    },
    /// Named devices that somebody has.
    Taken {
        /// Each with its holder: the first [`MOST_LISTED`].
        held: Vec<Held>,
        /// How many more.
        more: usize,
        /// What is free of the pools of these.
        free: Vec<FreeIn>,
    },
    /// Pools without enough free devices.
    Full(Vec<Full>),
    /// Pools with enough free devices, each for itself: the whole GPUs of the one are shares of the other.
    NotTogether {
        /// The pools.
        pools: Vec<String>,
    },
    /// MPS servers that do not run for it, and pools' other devices, if there are any, are held.
    Unserved {
        /// Their devices, as they were tried.
        tried: Vec<Unserved>,
        /// Who has the others: the first [`MOST_LISTED`].
        held: Vec<Held>,
        /// How many are held besides.
        more: usize,
    },
    /// It waited until the pool's time was over.
    Waited {
        /// How long, in seconds.
        seconds: u64,
        /// What was in the way at last.
        last: Box<Reason>,
    },
    /// The container ended before it was its turn.
    ContainerGone,
}

impl Refusal {
    /// Exit status of the hook.
    pub fn status(&self) -> u8 {
        self.reason.status()
    }

    /// For a person. `clock` writes seconds since the epoch as a time of day.
    pub fn message(&self, clock: &dyn Fn(u64) -> String) -> String {
        self.reason.message(&self.who(), clock)
    }

    /// What to do.
    pub fn hint(&self) -> Option<String> {
        self.reason.hint()
    }

    fn who(&self) -> String {
        user(self.user.as_deref(), self.container.uid)
    }
}

impl Reason {
    fn status(&self) -> u8 {
        match self {
            Reason::CapReached { .. }
            | Reason::Taken { .. }
            | Reason::Full(_)
            | Reason::NotTogether { .. }
            | Reason::Waited { .. } => 3,
            Reason::Unbound(_)
            | Reason::PastShares { .. }
            | Reason::MpsBeside { .. }
            | Reason::NoCgroup { .. } => 5,
            Reason::Unknown(_) => 6,
            Reason::Unserved { tried, held, .. } => unserved::status(tried, held),
            _ => 1,
        }
    }

    fn message(&self, who: &str, clock: &dyn Fn(u64) -> String) -> String {
        match self {
            Reason::NoPlan { file } => {
                format!("there is no plan in {}: nobody knows which devices there are", file.display())
            }
            Reason::Nothing => "the request names no device".into(),
            Reason::Unbound(Unbound::Privileged) => {
                "the container is privileged: it has every device, and a share would bind nothing".into()
            }
            Reason::Unbound(Unbound::HostDev) => {
                "the container has the host's /dev, or a GPU's node that it did not ask divvy for: a share would bind nothing"
                    .into()
            }
            Reason::Unbound(Unbound::NvidiaHook) => {
                "NVIDIA's hook gives the container devices too: a share would bind nothing".into()
            }
            Reason::Unknown(names) => {
                format!("{} not in the plan: the spec is of another one", is_or_are(names.iter()))
            }
            Reason::WholeAndShare { whole, share } => {
                format!("{share} is a part of {whole}, and both are asked for")
            }
            Reason::MpsAlone { share, others } => format!(
                "{share} is a share of an MPS server, and {} asked for beside it: a process has one pipe directory",
                is_or_are(others.iter())
            ),
            Reason::MpsBeside { share, node } => format!(
                "the container has {} beside {share}, a share of an MPS server: a process has one pipe directory",
                node.display()
            ),
            Reason::PastShares { node, gpu, is_cut } => {
                let past = if *is_cut { "its shares" } else { "its lease" };
                format!(
                    "the container has {} past {past}: GPU {gpu} is given out by name alone",
                    node.display()
                )
            }
            Reason::PerContainer { pool, asked, most } => {
                format!(
                    "{} of pool {pool} {} asked for, and one container may have {most}",
                    devices(*asked),
                    is_are(*asked)
                )
            }
            Reason::TooMany { pools } => too_many(pools),
            Reason::NotForUser { devices, pools } => {
                let pools = if pools.is_empty() {
                    "no pool".to_owned()
                } else {
                    format!("pool {} alone", listed(pools.iter()))
                };
                format!("{who} may not have {}, but devices of {pools}", listed(devices.iter()))
            }
            Reason::CapBelow { asked, most } => {
                format!("{} {} asked for, and {who} may hold {most}", devices(*asked), is_are(*asked))
            }
            Reason::CapReached { asked, held, most } => {
                format!(
                    "{who} holds {held} of the {} they may hold ([users] in the configuration), and {asked} more {} asked for",
                    devices(*most),
                    is_are(*asked)
                )
            }
            Reason::NoCgroup { pools } => format!(
                "the container has no cgroup of its own: what pool {} brings beside the granted devices could not be denied",
                listed(pools.iter())
            ),
            Reason::AsksAnother { before } => {
                format!(
                    "the container has asked for {} before: it cannot have others too",
                    listed(before.iter())
                )
            }
            Reason::Taken { held, more, free } => taken(held, *more, free, clock),
            Reason::Full(pools) => pools.iter().map(|full| full.text(clock)).collect::<Vec<_>>().join("; "),
            Reason::NotTogether { pools } => format!(
                "pools {} have free devices, but not at once: whole GPUs of the one are shares of the other",
                pools.join(" and ")
            ),
            Reason::Unserved { tried, held, more } => unserved::message(tried, held, *more, clock),
            Reason::Waited { seconds, last } => {
                format!("waited {} in vain: {}", duration(*seconds), last.message(who, clock))
            }
            Reason::ContainerGone => "the container ended while it waited".into(),
        }
    }
}

fn is_are(count: u32) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn devices(count: u32) -> String {
    format!("{count} device{}", if count == 1 { "" } else { "s" })
}

fn taken(held: &[Held], more: usize, free: &[FreeIn], clock: &dyn Fn(u64) -> String) -> String {
    let mut text: Vec<_> = held.iter().map(|held| held.text(clock)).collect();
    if more > 0 {
        text.push(format!("{more} more of what is asked for {} held", if more == 1 { "is" } else { "are" }));
    }
    for FreeIn { pool, devices } in free {
        text.push(match devices.as_slice() {
            [] => format!("nothing is free in pool {pool}"),
            _ => format!("free in pool {pool}: {}", listed(devices.iter())),
        });
    }
    text.join("; ")
}

fn too_many(pools: &[(String, u32, usize)]) -> String {
    let text =
        |(pool, asked, of): &(String, u32, usize)| format!("{} of pool {pool} (of {of})", devices(*asked));
    let verb = is_are(pools.iter().map(|(_, asked, _)| asked).sum());
    let pools: Vec<_> = pools.iter().map(text).collect();
    format!(
        "{} {verb} asked for: there are not so many at once beside what else is asked for",
        pools.join(" and ")
    )
}

fn user(name: Option<&str>, uid: u32) -> String {
    match (name, uid) {
        (Some(name), _) => format!("user {name}"),
        (None, 0) => "user root".into(),
        (None, uid) => format!("uid {uid}"),
    }
}

fn is_or_are<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", listed(names))
}

fn listed<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let more = names.len().saturating_sub(2 * MOST_LISTED);
    let mut names: Vec<_> = names.take(2 * MOST_LISTED).map(|name| name.to_string()).collect();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

/// In the largest unit that it is a whole number of.
fn duration(seconds: u64) -> String {
    match seconds {
        s if s > 0 && s % 3600 == 0 => format!("{} h", s / 3600),
        s if s > 0 && s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}
