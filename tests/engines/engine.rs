//! The engines under test, and a container on one of them. The same words work in all: what differs is how the
//! engine is called, and whether a device cgroup stands behind it.

use std::sync::{Mutex, PoisonError};

use crate::ground::{Ground, Need, Output, suite};

/// A trial that runs on every engine: its name and what it does.
pub type EngineTrial = (&'static str, fn(&Ground, &Engine));

/// An engine with the runtime that it uses.
#[derive(Debug)]
pub struct Engine {
    /// First part of the trials' names.
    pub name: &'static str,
    /// What must be there.
    pub need: Need,
    /// How it is called.
    call: &'static [&'static str],
    /// Root's containers have a device cgroup. A user's have none, and their root cannot make device nodes.
    pub rootful: bool,
    /// Options that give a container a user namespace of its own. Docker has none: there it is the daemon's setting.
    pub user_namespace: &'static [&'static str],
}

/// A container's root is a user of the host's without a name.
pub const MAPPED: &[&str] = &["--uidmap=0:100000:65536", "--gidmap=0:100000:65536"];

/// Every engine that trials run on.
pub const ENGINES: [Engine; 6] = [
    Engine { name: "docker-runc", need: Need::Docker, call: &["docker"], rootful: true, user_namespace: &[] },
    Engine {
        name: "podman-crun",
        need: Need::Podman,
        call: &["podman", "--runtime=crun"],
        rootful: true,
        user_namespace: MAPPED,
    },
    Engine {
        name: "podman-runc",
        need: Need::Podman,
        call: &["podman", "--runtime=runc"],
        rootful: true,
        user_namespace: MAPPED,
    },
    Engine {
        name: "rootless-crun",
        need: Need::Rootless,
        call: &["podman", "--runtime=crun"],
        rootful: false,
        user_namespace: &["--userns=keep-id"],
    },
    Engine {
        name: "ctr-runc",
        need: Need::Containerd,
        call: &["ctr-run"],
        rootful: true,
        user_namespace: MAPPED,
    },
    Engine {
        name: "cri-runc",
        need: Need::Containerd,
        call: &["cri-run"],
        rootful: true,
        user_namespace: MAPPED,
    },
];

impl Engine {
    /// A container with these devices, by their names in `nvidia.com/gpu`.
    pub fn container<'a>(&'a self, ground: &'a Ground, devices: &[&str]) -> Container<'a> {
        let options = devices.iter().map(|device| format!("--device=nvidia.com/gpu={device}")).collect();
        Container { ground, engine: self, options, image: "glibc" }
    }

    /// A kubelet makes a new container where others start the old one again.
    pub fn restarts(&self) -> bool {
        self.name != "cri-runc"
    }

    /// It brings back containers that end, if it is told to.
    pub fn restarts_by_itself(&self) -> bool {
        self.need != Need::Containerd
    }

    /// ctr takes CDI names since containerd 2; Debian's stable release has 1.7.
    pub fn takes_cdi_names(&self) -> bool {
        self.name != "ctr-runc" || suite() != "trixie"
    }

    /// Calls the engine.
    pub fn call(&self, ground: &Ground, args: &[&str]) -> Output {
        let entry = if self.rootful { "in.sh" } else { "as-user.sh" };
        ground.command(entry, &[self.call, args].concat())
    }
}

/// A container to be run.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    ground: &'a Ground,
    engine: &'a Engine,
    options: Vec<String>,
    image: &'a str,
}

impl<'a> Container<'a> {
    /// Adds an option of `run`.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// Another image than glibc (tests/machine/images.sh).
    pub fn image(self, image: &'a str) -> Self {
        Self { image, ..self }
    }

    /// Runs a shell script in it and removes it.
    pub fn sh(&self, script: &str) -> Output {
        self.start(&["run", "--rm"], script)
    }

    /// Runs scripts in it while another program is at work there, and removes it.
    pub fn exec<const N: usize>(&self, name: &str, scripts: [&str; N]) -> [Output; N] {
        let held = self.hold(name);
        scripts.map(|script| held.sh(script))
    }

    /// Starts it under a name with a program that goes on, until the guard is dropped.
    #[track_caller]
    pub fn hold(&self, name: &str) -> Held<'a> {
        self.hold_with(name, "sleep 600")
    }

    /// The same with another program.
    #[track_caller]
    pub fn hold_with(&self, name: &str, script: &str) -> Held<'a> {
        let held = Held { ground: self.ground, engine: self.engine, name: name.to_owned() };
        self.create(name, script).ok();
        held.call("start").ok();
        held
    }

    /// Creates it under a name, to be started later and more than once.
    pub fn create(&self, name: &str, script: &str) -> Output {
        self.start(&["create", "--name", name], script)
    }

    fn start(&self, verb: &[&str], script: &str) -> Output {
        // containerd 1.7 fails where it makes the same snapshot for other users twice at once.
        static REMAPPED: Mutex<()> = Mutex::new(());
        let is_remapped = self.options.iter().any(|option| MAPPED.contains(&option.as_str()));
        let _alone = (is_remapped && self.engine.need == Need::Containerd)
            .then(|| REMAPPED.lock().unwrap_or_else(PoisonError::into_inner));
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.engine.call(self.ground, &[verb, &options, &[self.image, "sh", "-c", script]].concat())
    }
}

/// A container that runs, or did: it is removed with this.
#[derive(Debug)]
pub struct Held<'a> {
    ground: &'a Ground,
    engine: &'a Engine,
    /// Its name in the engine.
    pub name: String,
}

impl Held<'_> {
    /// `start`, `restart` and their like.
    pub fn call(&self, verb: &str) -> Output {
        self.engine.call(self.ground, &[verb, &self.name])
    }

    /// Kills it and waits for its end.
    #[track_caller]
    pub fn stop(&self) {
        match self.engine.need {
            Need::Containerd => self.call("stop").ok(),
            _ => self.engine.call(self.ground, &["stop", "--time=0", &self.name]).ok(),
        };
    }

    /// Kills it and starts it again.
    #[track_caller]
    pub fn restart(&self) {
        if self.engine.restarts_by_itself() {
            self.engine.call(self.ground, &["restart", "--time=0", &self.name]).ok();
        } else {
            self.stop();
            self.call("start").ok();
        }
    }

    /// The GPU of a container that has a share of its engine's: on GPU 2 or GPU 3.
    #[track_caller]
    pub fn gpu(&self) -> &'static str {
        match self.sh("echo /dev/nvidia[0-9]*").ok() {
            "/dev/nvidia2" => "/dev/nvidia2",
            "/dev/nvidia3" => "/dev/nvidia3",
            other => panic!("{other}"),
        }
    }

    /// Runs a shell script in it.
    pub fn sh(&self, script: &str) -> Output {
        self.engine.call(self.ground, &["exec", &self.name, "sh", "-c", script])
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Podman waits ten seconds for a program that does not hear it.
        let time: &[&str] = if self.engine.call[0] == "podman" { &["--time=0"] } else { &[] };
        self.engine.call(self.ground, &[&["rm", "--force"], time, &[&self.name]].concat());
    }
}
