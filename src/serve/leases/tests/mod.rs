//! Histories of containers that come and go, written as text: what happens and what is decided. Plans are written as
//! text too, a word for each device, GPUs apart by a bar.

mod histories;
mod model;
mod mps;
mod nodes;
mod random;
mod scale;
mod starting;
mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hooks::lease::{Container, DeviceName, Labels, Lease, Request, VERSION};
use serde_json::json;

use super::refusal::No;
use super::{Ask, Decision, Event, Key, Leases};
use crate::plan::kept::Kept;
use crate::plan::pools::UserCap;

/// Noon of a day in 2026.
const NOON: u64 = 1_780_000_000;

/// A plan from words: `shared*4` for shares, `shared*4:mps` for those of an MPS server and `shared*4:one` for those of one
/// that serves one user at a time, `whole` for the GPU with exclusive, `open` for one without a lease, `1g`
/// for an exclusive MIG device and `1g-open` for one without. Pools are as `generate` makes them.
fn plan(text: &str) -> Kept {
    let (mut devices, mut pools, mut numbers) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut mps = BTreeMap::new();
    for (gpu, words) in text.split('|').enumerate() {
        let gpu_node = json!({"path": format!("/dev/nvidia{gpu}")});
        let mut mig = 0;
        for word in words.split_whitespace() {
            let device = |name: &str, uuid: String, kind: &str, leased: bool| {
                json!({"name": name, "classes": ["gpu"], "uuid": uuid, "type": kind, "mode": "whole", "gpu": gpu,
                    "limits": {}, "nodes": [gpu_node], "leased": leased})
            };
            let mut pool = |pool: &str, name: &str| {
                pools.entry(pool.to_owned()).or_insert_with(Vec::new).push(name.to_owned());
            };
            match word.split_once('*') {
                Some((share, count)) => {
                    let number = numbers.entry(share).or_insert(0);
                    let (count, server) = count.split_once(':').map_or((count, None), |(a, b)| (a, Some(b)));
                    if let Some(server) = server {
                        mps.insert(gpu, settings(gpu, server == "mps"));
                    }
                    for _ in 0..count.parse().unwrap() {
                        let name = format!("{share}-{number}");
                        *number += 1;
                        pool(share, &name);
                        let mut share = device(&name, format!("GPU-{gpu}"), "share", true);
                        share["mode"] = if server.is_some() { "mps" } else { "time-slice" }.into();
                        devices.push(share);
                    }
                }
                None if word == "whole" || word == "open" => {
                    let name = gpu.to_string();
                    if word == "whole" {
                        pool("whole", &name);
                    }
                    devices.push(device(&name, format!("GPU-{gpu}"), "gpu", word == "whole"));
                }
                None => {
                    let name = format!("{gpu}:{mig}");
                    let mut device =
                        device(&name, format!("MIG-{gpu}-{mig}"), "mig", !word.ends_with("-open"));
                    for part in ["gi", "ci"] {
                        let path = format!("/dev/nvidia-caps/{part}-{gpu}-{mig}");
                        device["nodes"].as_array_mut().unwrap().push(json!({"path": path}));
                    }
                    if !word.ends_with("-open") {
                        pool(&format!("mig-{word}"), &name);
                    }
                    devices.push(device);
                    mig += 1;
                }
            }
        }
    }
    let is_of_shares = |name: &str| name != "whole" && !name.starts_with("mig-");
    let pools = pools.iter().map(|(name, devices)| {
        let per_container = is_of_shares(name).then_some(1);
        json!({"class": "gpu", "name": name, "devices": devices, "wait_seconds": 0, "order": "spread",
            "per_container": per_container})
    });
    let pools = pools.collect::<Vec<_>>();
    let mps: Vec<_> = mps.into_values().collect();
    serde_json::from_value(json!({"generation": text, "devices": devices, "pools": pools, "mps": mps}))
        .unwrap()
}

fn settings(gpu: usize, multi_user: bool) -> serde_json::Value {
    let uuid = format!("GPU-{gpu}");
    json!({"uuid": uuid, "what": format!("GPU {gpu}"), "gpu_uuid": uuid, "is_mig": false,
        "active_thread_percentage": 50, "memory_mib": 1024, "client_limit": 48, "multi_user": multi_user,
        "at_boot": false, "shared_memory_bytes": null, "control": "/usr/bin/nvidia-cuda-mps-control",
        "server": "/usr/sbin/nvidia-cuda-mps-server", "driver_root": "/", "driver_version": "550.163.01"})
}

trait With {
    fn wait(self, seconds: u64) -> Self;
    fn any_number(self) -> Self;
    fn pack(self) -> Self;
    fn cap(self, user: &str, shares: Option<u32>, pools: Option<&[&str]>) -> Self;
}

impl With for Kept {
    fn wait(mut self, seconds: u64) -> Self {
        self.pools.iter_mut().for_each(|pool| pool.wait_seconds = seconds);
        self
    }

    fn any_number(mut self) -> Self {
        self.pools.iter_mut().for_each(|pool| pool.per_container = None);
        self
    }

    fn pack(mut self) -> Self {
        self.pools.iter_mut().for_each(|pool| pool.order = crate::plan::pools::Order::Pack);
        self
    }

    fn cap(mut self, user: &str, shares: Option<u32>, pools: Option<&[&str]>) -> Self {
        let pools = pools.map(|pools| pools.iter().map(|pool| (*pool).to_owned()).collect());
        self.users.push(UserCap { user: user.to_owned(), shares, pools });
        self
    }
}

fn names(words: &[&str]) -> Vec<DeviceName> {
    words
        .iter()
        .map(|word| match word.contains('=') {
            true => word.parse().unwrap(),
            false => DeviceName { class: "gpu".into(), name: (*word).into() },
        })
        .collect()
}

fn key(pid: i32) -> Key {
    Key { pid, start_time: 1 }
}

fn container(pid: i32, uid: u32) -> Container {
    Container {
        mount_namespace: 4_026_532_000 + u64::try_from(pid).unwrap(),
        pid,
        start_time: 1,
        boot_id: "boot".into(),
        cgroup: (uid == 0).then(|| format!("/system.slice/{pid}.scope").into()),
        uid,
        process_uid: Some(0),
        id: format!("{pid:04}2b1c3d4e5f60718293a4b5c6d7e8f"),
        bundle: format!("/run/{pid}").into(),
        engine: Some("podman".into()),
        name: Some(format!("web{pid}")),
    }
}

/// A container of root's with a cgroup of its own, whose configuration has what the plan brings for the names.
fn ask(plan: &Kept, pid: i32, words: &[&str], now: u64) -> Ask {
    let devices = names(words);
    let pools = plan.pools.iter().filter(|pool| words.contains(&pool.name.as_str()));
    let of_pools: BTreeSet<_> = pools.flat_map(|pool| &pool.devices).collect();
    let is_named = |name: &String| words.contains(&name.as_str());
    let brought = plan
        .devices
        .iter()
        .filter(|device| is_named(&device.name) || is_named(&device.uuid) || of_pools.contains(&device.name));
    let nodes: BTreeSet<_> =
        brought.flat_map(|device| device.nodes.iter().map(|node| node.path.clone())).collect();
    let nodes = nodes.into_iter().collect();
    let container = container(pid, 0);
    Ask {
        ticket: u64::try_from(pid).unwrap(),
        request: Request {
            version: VERSION,
            pid,
            start_time: container.start_time,
            id: container.id.clone(),
            bundle: container.bundle.clone(),
            devices,
            user: 0,
            nodes,
            unbound: None,
            labels: Labels::default(),
        },
        container,
        user: None,
        wall: NOON + now,
        now: Duration::from_secs(now),
    }
}

/// `1 has shared-0`, `2 refused 3`, `3 queues for 60 s behind 1`, `1 ends`.
fn said(decisions: &[Decision]) -> Vec<String> {
    let has = |lease: &Lease| {
        lease.devices.iter().map(|device| device.name.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let said = |decision: &Decision| match decision {
        Decision::Grant(ticket, lease) => format!("{ticket} has {}", has(lease)),
        Decision::Refuse(ticket, refusal) => format!("{ticket} refused {}", refusal.status()),
        Decision::Queue(ticket, seconds, ahead) => format!("{ticket} queues for {seconds} s behind {ahead}"),
        Decision::End(lease) => format!("{} ends", lease.container.pid),
        Decision::Withdraw(lease) => format!("{} has nothing", lease.container.pid),
        Decision::Warn(_) => "warning".into(),
    };
    decisions.iter().map(said).collect()
}

/// What a supervisor says.
fn no(status: u8) -> No {
    No { status, message: format!("no server: {status}"), hint: Some("wait".into()) }
}

/// The state machine under a plan, and the time.
struct World {
    plan: Kept,
    leases: Leases,
    now: u64,
}

impl World {
    fn new(plan: Kept) -> Self {
        let mut leases = Leases::new("/run/divvy".into());
        assert_eq!(leases.handle(Event::Plan(Box::new(plan.clone()))), []);
        Self { plan, leases, now: 0 }
    }

    /// What is decided on a line of a history:
    /// `ask PID[@UID][~PROCESS_UID][#TICKET] NAME...`, `first PID`, `gone PID`, `failed PID`, `served PID`,
    /// `unserved PID STATUS`, `left TICKET`, `at SECONDS`, `plan WORDS`, `restart`.
    fn does(&mut self, line: &str) -> Vec<String> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let pid = || key(rest.parse().unwrap());
        let event = match verb {
            "ask" => {
                let words: Vec<_> = rest.split_whitespace().collect();
                let (who, ticket) = words[0].split_once('#').map_or((words[0], None), |(a, b)| (a, Some(b)));
                let (who, process) = who.split_once('~').unwrap_or((who, "0"));
                let (pid, uid) = who.split_once('@').unwrap_or((who, "0"));
                let mut ask = ask(&self.plan, pid.parse().unwrap(), &words[1..], self.now);
                ask.container = container(ask.container.pid, uid.parse().unwrap());
                ask.container.process_uid = process.parse().ok();
                ask.ticket = ticket.map_or(ask.ticket, |ticket| ticket.parse().unwrap());
                Event::Asked(Box::new(ask))
            }
            "first" => Event::FirstProcessGone(pid()),
            "gone" => Event::Gone(pid()),
            "failed" => Event::Failed(pid()),
            "served" => Event::Served(pid()),
            "unserved" => {
                let (pid, status) = rest.split_once(' ').unwrap();
                Event::Unserved(key(pid.parse().unwrap()), Box::new(no(status.parse().unwrap())))
            }
            "left" => Event::Left(rest.parse().unwrap()),
            "at" => {
                self.now = rest.parse().unwrap();
                Event::Time(Duration::from_secs(self.now))
            }
            "plan" => {
                self.plan = plan(rest);
                Event::Plan(Box::new(self.plan.clone()))
            }
            "restart" => {
                let before = std::mem::take(&mut self.leases);
                let all: Vec<_> =
                    before.all().cloned().map(|lease| Event::Adopted(Box::new(lease))).collect();
                let events = [Event::Plan(Box::new(self.plan.clone()))].into_iter().chain(all);
                return said(&events.flat_map(|event| self.leases.handle(event)).collect::<Vec<_>>());
            }
            _ => panic!("no verb {verb:?}"),
        };
        said(&self.leases.handle(event))
    }
}

/// Plays lines of the form `what happens -> what is decided`.
#[track_caller]
fn history(plan: Kept, lines: &str) -> World {
    let mut world = World::new(plan);
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (what, expected) = line.split_once(" ->").unwrap_or((line, ""));
        assert_eq!(world.does(what.trim()).join(", "), expected.trim(), "{line}");
    }
    world
}
