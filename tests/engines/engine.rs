//! The engines under test, and a container on one of them. The same words work in all: what differs is how the
//! engine is called, and whether a device cgroup stands behind it.

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
        if !self.engine.restarts() {
            return scripts.map(|script| self.start(&["exec"], script));
        }
        self.create(name, "sleep 60").ok();
        self.engine.call(self.ground, &["start", name]).ok();
        let outputs =
            scripts.map(|script| self.engine.call(self.ground, &["exec", name, "sh", "-c", script]));
        self.engine.call(self.ground, &["rm", "--force", "--time=0", name]);
        outputs
    }

    /// Runs it and starts it once more, where that is no call of the engine's.
    pub fn again(&self, script: &str) -> Output {
        self.start(&["again"], script)
    }

    /// Creates it under a name, to be started later and more than once.
    pub fn create(&self, name: &str, script: &str) -> Output {
        self.start(&["create", "--name", name], script)
    }

    fn start(&self, verb: &[&str], script: &str) -> Output {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.engine.call(self.ground, &[verb, &options, &[self.image, "sh", "-c", script]].concat())
    }
}
