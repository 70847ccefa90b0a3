//! The real `divvy-hook create-runtime`, called as a runtime does: the state on its standard input, and the container's
//! configuration in the bundle.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use hooks::args::CreateRuntime;
use serde_json::json;

use crate::container::Container;
use crate::ground::Ground;
use crate::support::needs::built_hook;

/// A container's bundle: a configuration with a hook for each device.
#[derive(Debug)]
pub struct Bundle {
    args: Vec<String>,
    state: String,
}

impl Bundle {
    /// Writes it.
    pub fn new(ground: &Ground, container: &Container, devices: &[&str]) -> Self {
        let bundle = ground.path("bundles").join(&container.id);
        fs::create_dir_all(&bundle).unwrap();
        let hooks = devices.iter().map(|device| {
            let asked = CreateRuntime {
                state_dir: ground.state(),
                ..CreateRuntime::new(vec![device.parse().unwrap()])
            };
            let args = ["divvy-hook".to_owned()].into_iter().chain(asked.to_args());
            json!({"path": built_hook().unwrap(), "args": args.collect::<Vec<_>>()})
        });
        let hooks: Vec<_> = hooks.collect();
        let nodes = ground.request(container, devices).nodes;
        let nodes = nodes.iter().map(|path| {
            let minor: u32 = path.to_str().unwrap().trim_start_matches("/dev/nvidia").parse().unwrap();
            json!({"path": path, "type": "c", "major": 195, "minor": minor})
        });
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["true"], "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "hooks": {"createRuntime": hooks},
            "linux": {
                "devices": nodes.collect::<Vec<_>>(),
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            },
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let args = hooks[0]["args"].as_array().unwrap();
        let args = args.iter().skip(1).map(|word| word.as_str().unwrap().to_owned()).collect();
        let state = json!({
            "ociVersion": "1.0.2",
            "id": container.id,
            "status": "creating",
            "pid": container.pid(),
            "bundle": bundle,
        });
        Self { args, state: state.to_string() }
    }

    /// Calls the first hook.
    pub fn call(&self) -> Child {
        let mut command = Command::new(built_hook().unwrap());
        command
            .args(&self.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut hook = command.spawn().unwrap();
        hook.stdin.take().unwrap().write_all(self.state.as_bytes()).unwrap();
        hook
    }
}
