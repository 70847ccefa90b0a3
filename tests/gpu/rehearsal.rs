//! Where no GPU is tried: that the guardian leaves a machine as it found it, and keeps off what is in use. With the mock of
//! NVML, and programs of MPS that never answer; as root, in namespaces in which nothing else is.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::Trial;
use tempfile::TempDir;

use super::support::needs::{self, Need};
use super::support::{facts, mock_nvml, run};

/// UUID of the simulated GPU.
const GPU: &str = "GPU-bdf38e33-4d59-5308-a8d7-a92dfc4a917b";
/// nvmlComputeMode_t.
const DEFAULT: &str = "0";
const PROHIBITED: &str = "2";
const EXCLUSIVE_PROCESS: &str = "3";

/// The tests.
pub fn trials() -> Vec<Trial> {
    const NEEDS: &[Need] = &[Need::Root, Need::Mounts];
    vec![
        needs::trial("what_is_in_use_is_left_alone", NEEDS, what_is_in_use_is_left_alone),
        needs::trial("a_gpu_has_to_be_chosen", NEEDS, a_gpu_has_to_be_chosen),
        needs::trial("all_is_as_before_after_checks_that_fail", NEEDS, after_checks_that_fail),
        needs::trial("all_is_as_before_after_a_signal", NEEDS, after_a_signal),
        needs::trial("all_is_as_before_without_the_guardian", NEEDS, without_the_guardian),
        needs::trial("the_next_run_finds_what_was_there", NEEDS, the_next_run_finds_what_was_there),
        needs::trial("a_mode_that_is_kept_is_not_set", NEEDS, a_mode_that_is_kept_is_not_set),
    ]
}

/// A machine with one idle GPU.
struct Stage {
    dir: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Stage {
    fn new(host: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let stage = Self { dir, environment: Vec::new() };
        mock_nvml(stage.dir.path());
        fs::create_dir(stage.path("modes")).unwrap();
        for program in ["nvidia-cuda-mps-control", "nvidia-cuda-mps-server"] {
            fs::write(stage.path(program), "#!/bin/sh\nexec /bin/sleep 1000\n").unwrap();
            fs::set_permissions(stage.path(program), Permissions::from_mode(0o755)).unwrap();
        }
        let path = |name: &str| stage.path(name).display().to_string();
        let environment = vec![
            ("LD_LIBRARY_PATH", path("")),
            ("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path(""))),
            ("MOCK_NVML_FACTS", facts(host).display().to_string()),
            ("MOCK_NVML_COMPUTE_MODES", path("modes")),
            ("MOCK_NVML_LOG", path("log")),
            ("MODE", path(&format!("modes/{GPU}"))),
            ("DIVVY_TEST_GPU", "1".into()),
        ];
        Self { environment, ..stage }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a script in which `$1` is this target, and prints what is left: processes but its own, and the run's files.
    fn play(&self, script: &str) -> String {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
        command.arg(format!(
            "mount -t tmpfs tmpfs /run; \
             soon() {{ n=0; until \"$@\"; do n=$((n + 1)); [ $n -lt 1500 ] || exit 9; sleep 0.02; done; }}; \
             is() {{ [ \"$(cat \"$MODE\" 2>&1)\" = \"$1\" ]; }}; mode() {{ soon is \"$1\"; }}; \
             alone() {{ set -- /proc/[0-9]*; [ $# = 1 ]; }}; \
             {script}\n\
             soon alone; echo left: $(ls /run/divvy-test-gpu 2>&1)"
        ));
        command.arg("sh").arg(std::env::current_exe().unwrap());
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        let (_, out, errors) = run(&mut command);
        out + &errors
    }

    fn mode(&self) -> String {
        fs::read_to_string(self.path("modes").join(GPU)).unwrap_or_else(|_| "never set".into())
    }

    /// It was exclusive-process for a while, and is as it was found.
    #[track_caller]
    fn is_as_before(&self, said: &str) {
        let log = fs::read_to_string(self.path("log")).unwrap();
        assert!(log.contains(&format!("compute mode {EXCLUSIVE_PROCESS}")), "{log}\n{said}");
        assert_eq!(self.mode(), DEFAULT, "{said}");
        assert!(said.contains("The compute mode is Default, as it was found."), "{said}");
    }
}

fn what_is_in_use_is_left_alone() {
    let mut stage = Stage::new("l4");
    fs::write(
        stage.path("processes"),
        format!("{{\"{GPU}\": {{\"compute\": [{{\"pid\": 1, \"memory\": 1}}]}}}}"),
    )
    .unwrap();
    stage.environment.push(("MOCK_NVML_PROCESSES", stage.path("processes").display().to_string()));
    let said = stage.play("\"$1\" 01");
    assert!(
        said.contains("error: GPU 0 is in use, and these checks would end that: process 1 (sh)"),
        "{said}"
    );
    assert_eq!(stage.mode(), "never set", "{said}");
    // MPS that nobody uses at the moment.
    let stage = Stage::new("l4");
    let daemon = "cp /bin/sleep /run/nvidia-cuda-mps-control; mount -o remount,exec /run; \
                  /run/nvidia-cuda-mps-control 1000 & sleep 0.2";
    let said = stage.play(&format!("{daemon}; \"$1\" 01; kill $!"));
    assert!(said.contains("which is MPS"), "{said}");
    assert_eq!(stage.mode(), "never set", "{said}");
    let stage = Stage::new("l4");
    fs::write(stage.path("modes").join(GPU), PROHIBITED).unwrap();
    let said = stage.play("\"$1\" 01");
    assert!(said.contains("compute mode prohibited: somebody wants nothing to run on it"), "{said}");
    assert_eq!(stage.mode(), PROHIBITED, "{said}");
}

fn a_gpu_has_to_be_chosen() {
    let stage = Stage::new("h100x8");
    let said = stage.play("\"$1\" 01; DIVVY_GPU=9 \"$1\" 01; DIVVY_GPU=all \"$1\" 01");
    for error in [
        "error: there are 8 GPUs, and none was chosen: DIVVY_GPU=<index> says which one",
        "error: cannot find GPU 9",
        "error: DIVVY_GPU is \"all\": not the index of a GPU",
    ] {
        assert!(said.contains(error), "{said}");
    }
}

fn after_checks_that_fail() {
    let stage = Stage::new("l4");
    // There is no CUDA.
    let said = stage.play("\"$1\" 01; echo status $?");
    stage.is_as_before(&said);
    assert!(said.contains("0 passed, 1 failed, 0 skipped") && said.contains("status 1"), "{said}");
    assert!(said.contains("cannot load libcuda.so.1"), "{said}");
    assert!(said.contains("left: lock\n"), "{said}");
}

fn after_a_signal() {
    for signal in ["INT", "TERM", "HUP"] {
        let stage = Stage::new("l4");
        let said =
            stage.play(&format!("\"$1\" 04 & mode 3; sleep 0.2; kill -{signal} $!; wait $!; echo status $?"));
        stage.is_as_before(&said);
        assert!(said.contains(&format!("error: SIG{signal}: the checks are ended")), "{said}");
        assert!(said.contains("status 1") && said.contains("left: lock\n"), "{said}");
    }
}

fn without_the_guardian() {
    let stage = Stage::new("l4");
    let said = stage.play("\"$1\" 04 & mode 3; sleep 0.2; kill -KILL $!; mode 0");
    stage.is_as_before(&said);
    // Nothing speaks of a mode any more.
    assert!(!said.contains(".mode"), "{said}");
}

fn the_next_run_finds_what_was_there() {
    let stage = Stage::new("l4");
    let said = stage.play("\"$1\" 04 & mode 3; sleep 0.2; kill -KILL -1; \"$1\" 01");
    assert!(
        said.contains("A run before this one was killed: the compute mode it found was Default."),
        "{said}"
    );
    stage.is_as_before(&said);
    assert!(said.contains("left: lock\n"), "{said}");
}

fn a_mode_that_is_kept_is_not_set() {
    let mut stage = Stage::new("l4");
    stage.environment.push(("DIVVY_GPU_KEEP_MODE", "1".into()));
    let said = stage.play("\"$1\" 01; \"$1\" 16");
    assert_eq!(stage.mode(), "never set", "{said}");
    assert!(said.contains("- leaves the compute mode as it is (Default)."), "{said}");
    assert!(said.contains("it sets the compute mode, and the compute mode is kept as it is"), "{said}");
}
