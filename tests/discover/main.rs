//! Black box, as root: live discovery through a real libnvidia-ml interface, on simulated hosts that are laid out as
//! files. It must then tell the same as the simulated data.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod files;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Trial};
use support::laid::Laid;
use support::needs::{self, Need};
use support::{divvy, facts, leave_out_symbol, peak, run};

/// What `generate` may have resident, in KiB, as it is built for tests: two and a half times what a release has, which
/// `make bench` shows. NVIDIA's generator takes 20.8 MiB for the same host.
const MOST_RESIDENT: u64 = 35 << 9;

const HOOK: &str = "--hook-path=/bin/true";

fn main() {
    let tests: [(&'static str, fn()); 14] = [
        ("live_and_simulated_specs_are_the_same", live_and_simulated_specs_are_the_same),
        ("nvml_is_started_and_stopped_once", nvml_is_started_and_stopped_once),
        ("a_missing_symbol_costs_one_fact", a_missing_symbol_costs_one_fact),
        ("one_gpu_of_eight_fails", one_gpu_of_eight_fails),
        ("a_mig_device_fails", a_mig_device_fails),
        ("nvml_does_not_start", nvml_does_not_start),
        ("no_gpu", no_gpu),
        ("mig_mode_without_instances", mig_mode_without_instances),
        ("an_unknown_profile_keeps_uuid_and_index", an_unknown_profile_keeps_uuid_and_index),
        ("capabilities_without_mig_minors", capabilities_without_mig_minors),
        ("sim_lays_out_and_refuses", sim_lays_out_and_refuses),
        ("little_memory", little_memory),
        ("users_are_those_of_this_machine", users_are_those_of_this_machine),
        ("a_compute_mode_of_divvys_own", a_compute_mode_of_divvys_own),
    ];
    let mut trials: Vec<Trial> = tests
        .into_iter()
        .chain(files::TRIALS)
        .map(|(name, test)| needs::trial(name, &[Need::Root], test))
        .collect();
    trials.push(needs::trial("few_system_calls", &[Need::Root, Need::Strace], few_system_calls));
    trials.push(needs::trial("a_real_gpu", &[Need::Gpu], a_real_gpu));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn live_and_simulated_specs_are_the_same() {
    for host in ["a100-lab", "h100x8", "hgx-h100", "l4", "mixed", "mps"] {
        let laid = Laid::out(host);
        let root = laid.root().display().to_string();
        let sim = format!("--host=sim:{host}");
        // A simulated host brings its configuration, this machine has none.
        let config = facts(host).with_extension("toml");
        let config = config.exists().then(|| format!("--config={}", config.display()));
        let flags: Vec<&str> =
            ["generate", HOOK, "--output=-"].into_iter().chain(config.as_deref()).collect();
        let (status, live, errors) = laid.live(&flags, &[]);
        let (_, simulated, said) =
            run(&mut divvy(&["generate", HOOK, "--output=-", &sim, "--driver-root", &root]));
        assert_eq!((status, errors), (0, said), "{host}");
        assert!(live == simulated, "{host}: the specs differ");
        // Of a simulated host nobody knows the leases, unless it is said where they are.
        let list = ["list", "--format=json", &format!("--state-dir={root}/state")];
        let (_, simulated, _) = run(divvy(&list).arg(&sim));
        let flags: Vec<&str> = list.into_iter().chain(config.as_deref()).collect();
        assert_eq!(laid.live(&flags, &[]).1, simulated, "{host}");
    }
}

fn nvml_is_started_and_stopped_once() {
    let laid = Laid::out("a100-lab");
    laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!(fs::read_to_string(laid.log()).unwrap(), "init\nshutdown\n");
    fs::remove_file(laid.log()).unwrap();
    laid.live(&["list"], &[("MOCK_NVML_FAIL", "nvmlDeviceGetHandleByIndex_v2@3=15")]);
    assert_eq!(fs::read_to_string(laid.log()).unwrap(), "init\nshutdown\n");
}

/// Of another machine's users nothing is known here.
fn users_are_those_of_this_machine() {
    let laid = Laid::out("l4");
    let config = laid.dir.path().join("config.toml");
    let generate = |text: &str, flags: &[&str]| {
        fs::write(&config, text).unwrap();
        let config = format!("--config={}", config.display());
        let flags = [&["generate", HOOK, "--output=-", &config], flags].concat();
        let (status, out, errors) = match flags.iter().any(|flag| flag.starts_with("--host")) {
            true => run(&mut divvy(&flags)),
            false => laid.live(&flags, &[]),
        };
        (status, out.is_empty(), errors.replace(laid.dir.path().to_str().unwrap(), "DIR"))
    };
    let nobody = "[users.nosuch]\nshares = 1\n\n[users.nobody]\nshares = 2\n";
    let (status, is_empty, errors) = generate(nobody, &[]);
    assert_eq!((status, is_empty), (7, false), "{errors}");
    let warning = "warning: DIR/config.toml:1:8: there is no user \"nosuch\" on this machine: nobody is capped by it\nhint: ";
    assert!(errors.starts_with(warning) && errors.lines().count() == 2, "{errors}");
    assert_eq!(generate(nobody, &["--host=sim:l4"]), (0, false, String::new()));
    let twice = "[users.nobody]\n[users.65534]\n";
    let (status, is_empty, errors) = generate(twice, &[]);
    assert_eq!((status, is_empty), (2, true));
    assert_eq!(
        errors,
        "error: DIR/config.toml:1:8: \"nobody\" and \"65534\", at DIR/config.toml:2:8, are one user, whose uid is 65534\n\
         hint: remove one of the two\n"
    );
}

/// While MPS is away, nobody may use its GPU, and that is no administrator's ban. Nor is it another plan.
fn a_compute_mode_of_divvys_own() {
    let mut laid = Laid::out("l4");
    laid.change_facts(|host| host["gpus"][0]["compute_mode"] = "prohibited".into());
    // MPS takes no long paths, which a build directory's often are.
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("config.toml");
    fs::write(&config, "[[gpu]]\nmatch = [\"0\"]\nmode = \"mps\"\n").unwrap();
    let flag = |name: &str, path: &str| format!("--{name}={}", place.path().join(path).display());
    let flags = [flag("config", "config.toml"), flag("state-dir", "state"), flag("output", "divvy.json")];
    let flags: Vec<&str> = ["generate", HOOK].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let (status, _, errors) = laid.live(&flags, &[]);
    assert_eq!(status, 0, "{errors}");
    assert!(errors.contains("in compute mode prohibited: whoever set that"), "{errors}");
    let before = fs::read_to_string(place.path().join("divvy.json")).unwrap();
    let supervised = place.path().join("state/mps").join(uuid_of_gpu_0(&laid));
    fs::create_dir_all(&supervised).unwrap();
    fs::write(supervised.join("compute-mode.json"), "{}").unwrap();
    let (status, said, errors) = laid.live(&flags, &[]);
    assert_eq!(status, 0, "{errors}");
    assert!(!errors.contains("prohibited") && said.starts_with("unchanged: "), "{said}{errors}");
    assert_eq!(fs::read_to_string(place.path().join("divvy.json")).unwrap(), before);
}

fn uuid_of_gpu_0(laid: &Laid) -> String {
    let facts: serde_json::Value = serde_json::from_str(&fs::read_to_string(&laid.facts).unwrap()).unwrap();
    facts["gpus"][0]["uuid"].as_str().unwrap().to_owned()
}

fn little_memory() {
    let laid = Laid::out("hgx-h100");
    let output = format!("--output={}", laid.dir.path().join("divvy.json").display());
    let (status, _, errors) = laid.live_under(&peak::RESIDENT, &["generate", HOOK, &output], &[]);
    assert_eq!(status, 0, "{errors}");
    let kib = peak::kib(&errors);
    // Less than this is not divvy.
    assert!((2000..MOST_RESIDENT).contains(&kib), "{kib} KiB");
}

/// NVIDIA's generator makes some 15,300 for the same host, and starts NVML four times.
fn few_system_calls() {
    let laid = Laid::out("hgx-h100");
    let calls = laid.dir.path().join("calls");
    let output = format!("--output={}", laid.dir.path().join("divvy.json").display());
    let strace = ["strace", "-f", "-o", calls.to_str().unwrap()];
    let (status, _, errors) = laid.live_under(&strace, &["generate", HOOK, &output], &[]);
    assert_eq!(status, 0, "{errors}");
    let calls = fs::read_to_string(calls).unwrap().lines().filter(|line| line.contains(" = ")).count();
    assert!((100..2500).contains(&calls), "{calls} system calls");
    assert_eq!(fs::read_to_string(laid.log()).unwrap(), "init\nshutdown\n");
}

fn a_missing_symbol_costs_one_fact() {
    let whole = Laid::out("a100-lab").list(&[]).0;
    for (symbol, device, pointer) in [
        ("nvmlDeviceGetNumGpuCores", 4, "/sms"),
        ("nvmlDeviceGetMemoryInfo_v2", 4, ""),
        ("nvmlDeviceGetCudaComputeCapability", 4, "/compute_capability"),
        ("nvmlDeviceGetComputeMode", 4, "/compute_mode"),
        ("nvmlDeviceGetName", 4, "/model"),
        ("nvmlDeviceGetMinorNumber", 4, ""),
        ("nvmlDeviceGetPciInfo_v3", 4, "/pci_address"),
        ("nvmlGpuInstanceGetInfo", 0, "/mig/placement"),
        ("nvmlDeviceGetAttributes_v2", 0, "/memory_bytes"),
        ("nvmlSystemGetDriverVersion", 4, ""),
        ("nvmlShutdown", 4, ""),
    ] {
        let laid = Laid::out("a100-lab");
        leave_out_symbol(&laid.library(), symbol);
        // Without NVML's word the driver version is the module's, if this machine has one.
        if symbol == "nvmlSystemGetDriverVersion" && !Path::new("/sys/module/nvidia/version").exists() {
            let (status, _, errors) = laid.live(&["list"], &[]);
            assert_eq!(status, 1);
            assert!(errors.contains("the driver's version is not known"), "{errors}");
            continue;
        }
        let (listing, errors) = laid.list(&[]);
        assert_eq!(errors, "", "{symbol}");
        let devices = listing["devices"].as_array().unwrap();
        assert_eq!(devices.len(), 11, "{symbol}");
        // An empty pointer: another source told the same fact.
        if pointer.is_empty() {
            assert_eq!(listing, whole, "{symbol}");
        } else {
            assert!(devices[device].pointer(pointer).unwrap().is_null(), "{symbol}: {}", devices[device]);
        }
    }
}

fn one_gpu_of_eight_fails() {
    let laid = Laid::out("h100x8");
    for (function, code) in [("nvmlDeviceGetHandleByIndex_v2", "15"), ("nvmlDeviceGetUUID", "999")] {
        let fail = format!("{function}@3={code}");
        let (status, spec, errors) =
            laid.live(&["generate", HOOK, "--output=-"], &[("MOCK_NVML_FAIL", &fail)]);
        assert_eq!(status, 7, "{errors}");
        assert!(errors.starts_with("warning: GPU 3 is left out: NVML cannot read it: "), "{errors}");
        assert!(errors.contains("\nhint: "), "{errors}");
        let spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
        assert_eq!(spec["devices"].as_array().unwrap().len(), 7 * 2 + 1);
        assert!(!spec.to_string().contains("/dev/nvidia3"), "in `all` too it must be missing");
    }
}

fn a_mig_device_fails() {
    let laid = Laid::out("a100-lab");
    let fail = [("MOCK_NVML_FAIL", "nvmlDeviceGetComputeInstanceId=999")];
    let (status, _, errors) = laid.live(&["generate", HOOK, "--output=-"], &fail);
    assert_eq!(status, 7);
    assert_eq!(errors.matches("warning: MIG device 0:").count(), 4, "{errors}");
    assert_eq!(laid.names(&fail), ["1", "2", "3", "4", "5", "6", "7"]);
}

fn nvml_does_not_start() {
    let laid = Laid::out("h100x8");
    for (code, words) in [
        ("9", ["error: the NVIDIA driver is not loaded", "hint: load it with `modprobe nvidia`"]),
        (
            "18",
            ["error: the NVIDIA library and the loaded kernel module are of different versions", "hint: "],
        ),
        ("4", ["error: no permission to talk to the NVIDIA driver", "hint: run as root"]),
        ("999", ["error: NVML does not start: ", "hint: `nvidia-smi`"]),
    ] {
        let spec = laid.dir.path().join("divvy.json");
        fs::write(&spec, "old").unwrap();
        let output = format!("--output={}", spec.display());
        let fail = format!("nvmlInit_v2={code}");
        let (status, out, errors) = laid.live(&["generate", HOOK, &output], &[("MOCK_NVML_FAIL", &fail)]);
        assert_eq!((status, out.as_str()), (1, ""), "{errors}");
        assert!(words.iter().all(|word| errors.contains(word)), "{errors}");
        assert_eq!(fs::read_to_string(&spec).unwrap(), "old");
    }
    fs::write(laid.library(), "not a library").unwrap();
    let (status, _, errors) = laid.live(&["list"], &[]);
    assert_eq!(status, 1);
    assert!(errors.starts_with("error: cannot load ") && errors.contains("hint: "), "{errors}");
}

fn no_gpu() {
    let mut laid = Laid::out("h100x8");
    laid.change_facts(|facts| facts["gpus"] = serde_json::json!([]));
    for args in [vec!["generate", HOOK, "--output=-"], vec!["list"]] {
        let (status, out, errors) = laid.live(&args, &[]);
        assert_eq!((status, out.as_str()), (1, ""));
        assert!(errors.contains("error: the driver is loaded and sees no GPU\nhint: "), "{errors}");
    }
}

fn mig_mode_without_instances() {
    let mut laid = Laid::out("a100-lab");
    laid.change_facts(|facts| facts["gpus"][0]["mig"]["devices"] = serde_json::json!([]));
    let (status, _, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!(status, 0);
    assert!(errors.starts_with("note: GPU 0 is in MIG mode and has no MIG devices"), "{errors}");
    assert_eq!(laid.names(&[]), ["1", "2", "3", "4", "5", "6", "7"]);

    laid.change_facts(|facts| {
        let gpus = facts["gpus"].as_array_mut().unwrap();
        gpus.truncate(1);
    });
    let (status, out, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(errors.contains("error: no GPU or MIG device can be given to a container"), "{errors}");
}

fn an_unknown_profile_keeps_uuid_and_index() {
    let mut laid = Laid::out("a100-lab");
    laid.change_facts(|facts| {
        let device = &mut facts["gpus"][0]["mig"]["devices"][3];
        device["name"] = "NVIDIA A100-SXM4-40GB".into();
        for fact in
            ["gpu_instance_slices", "compute_instance_slices", "multiprocessors", "memory_mib", "placement"]
        {
            device[fact] = serde_json::Value::Null;
        }
        facts["gpus"][0]["mig"]["devices"][2]["name"] = "NVIDIA A100-SXM4-40GB MIG 9z.7gb+new".into();
    });
    let (status, spec, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!((status, errors.as_str()), (0, ""));
    assert!(spec.contains("\"0:3\"") && spec.contains("MIG-20301a31-77fa-59ec-b0b8-7ef543821f29"));
    let (listing, _) = laid.list(&[]);
    assert_eq!(listing["devices"][2]["mig"]["profile"], "9z.7gb+new");
    assert!(listing["devices"][3]["mig"]["profile"].is_null());
}

/// Drivers without the nvidia-caps table tell each capability's minor in a file of its own.
fn capabilities_without_mig_minors() {
    let laid = Laid::out("a100-lab");
    let whole = laid.list(&[]).0;
    fs::remove_file(laid.root().join("proc/driver/nvidia-caps/mig-minors")).unwrap();
    assert_eq!(laid.list(&[]).0, whole);
    let capability = laid.root().join("proc/driver/nvidia/capabilities/gpu0/mig/gi9/access");
    fs::write(capability, "DeviceFileMinor: -1\n").unwrap();
    let (_, errors) = laid.list(&[]);
    assert!(
        errors.starts_with(
            "warning: MIG device 0:3 is left out: the driver lists no capability gpu0/mig/gi9/access\n"
        ),
        "{errors}"
    );
}

fn sim_lays_out_and_refuses() {
    let laid = Laid::out("h100x8");
    assert!(Path::new(&laid.root()).join("dev/nvidia7").exists());
    let (status, _, errors) = run(divvy(&["sim", "sim:h100x8"]).arg(laid.root()));
    assert_eq!(status, 2);
    assert!(errors.contains("is not empty\nhint: "), "{errors}");
    let (status, _, errors) = run(divvy(&["sim", "a100-lab"]).arg(laid.dir.path().join("no/parent")));
    assert_eq!(status, 1, "{errors}");
    let left: Vec<_> =
        fs::read_dir(laid.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["host"], "something was left behind");
}

/// On a machine with a GPU: the same devices as NVIDIA's own tool lists.
fn a_real_gpu() {
    let (status, json, errors) = run(&mut divvy(&["list", "--format=json"]));
    assert_eq!(status, 0, "{errors}");
    let listing: serde_json::Value = serde_json::from_str(&json).unwrap();
    let devices = listing["devices"].as_array().unwrap();
    let left_out = listing["problems"].as_array().unwrap();
    let (status, told, _) = run(Command::new("nvidia-smi").arg("-L"));
    assert_eq!(status, 0);
    assert!(told.contains("UUID: "), "{told}");
    let uuids = told.split("UUID: ").skip(1).filter_map(|rest| rest.split(')').next());
    // A GPU in MIG mode is listed by nvidia-smi, and given out in MIG devices only.
    let in_mig = |uuid: &str| {
        told.lines().skip_while(|line| !line.contains(uuid)).nth(1).is_some_and(|next| next.contains("MIG "))
    };
    for uuid in uuids.filter(|uuid| !in_mig(uuid) || uuid.starts_with("MIG-")) {
        let there = devices.iter().any(|device| device["uuid"] == uuid);
        // A device that cannot be given out is named by index, which nvidia-smi has at the line's begin.
        let index = told.lines().find(|line| line.contains(uuid)).and_then(|line| line.split(':').next());
        let named = left_out.iter().any(|problem| problem["what"] == index.unwrap_or_default().trim());
        assert!(there || named, "{uuid} is not in\n{json}");
    }
    let (_, memory, _) =
        run(Command::new("nvidia-smi")
            .args(["--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]));
    for (uuid, mib) in memory.lines().filter_map(|line| line.split_once(", ")) {
        if let Some(device) = devices.iter().find(|device| device["uuid"] == uuid) {
            assert_eq!(
                device["memory_bytes"].as_u64().map(|bytes| bytes >> 20),
                mib.trim().parse().ok(),
                "{uuid}"
            );
        }
    }
}
