//! What this driver can do, before anything is tried.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::process::run;
use crate::program::Setup;
use crate::report::Rows;

const QUESTION: Duration = Duration::from_secs(20);

/// 1: the driver decides what there is.
pub fn driver(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let sms = ground.sms()?;
    rows.measured("does a program without MPS run, and how many SMs is it told?", "a context", sms);
    let programs = &ground.programs;
    let bytes = fs::read(&programs.control)?;
    let driver = &ground.gpu.driver;
    let texts = bytes.split(|byte| *byte == 0).filter_map(|text| str::from_utf8(text).ok());
    let versions: Vec<&str> = texts.filter(|text| is_version(text)).collect();
    let asked = format!("texts in {}", programs.control.display());
    let question = "is MPS of the driver's version, as its bytes say?";
    match versions.join(" ") {
        said if said.is_empty() => rows.measured(question, &asked, "they do not say"),
        said => rows.claim(question, &asked, said, versions.contains(&driver.as_str())),
    }
    let flag = programs.multi_user.unwrap_or("no");
    rows.measured("can one server serve several users?", "flags in its bytes", flag);
    for (question, program, arguments) in [
        ("is there MPS v3, with namespaces?", programs.control.as_os_str(), &["-p", "3", "-h"][..]),
        ("are there memory limits of cgroups?", "nvidia-smi".as_ref(), &["memory-limits", "--help"]),
        (
            "what time slices are there?",
            "nvidia-smi".as_ref(),
            &["compute-policy", "-l", "-i", &ground.gpu.gpu_uuid],
        ),
    ] {
        // Away from any control daemon of the host's.
        let nowhere = ground.directory.join("nowhere");
        let said =
            run(Command::new(program).args(arguments).env("CUDA_MPS_PIPE_DIRECTORY", nowhere), "", QUESTION);
        let said = said.unwrap_or_else(|error| format!("{error:#}"));
        let short: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(8).collect();
        let name = program.to_string_lossy();
        let name = name.rsplit('/').next().unwrap_or_default();
        rows.measured(question, &format!("{name} {}", arguments.join(" ")), short.join(" / "));
    }
    let capacity = fs::read_to_string("/sys/fs/cgroup/dmem.capacity");
    let capacity = capacity.map_or_else(|error| error.to_string(), |text| text.trim().to_owned());
    rows.measured("does the kernel count device memory?", "/sys/fs/cgroup/dmem.capacity", capacity);
    Ok(())
}

/// `550.163.01`.
fn is_version(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').all(digits) && text.split('.').count() >= 2 && text.find('.') == Some(3)
}

/// 13: a MIG device. All other checks run on it too, where the GPU is in MIG mode.
pub fn mig(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    if !ground.gpu.is_mig {
        rows.skipped("does MPS hold limits on a MIG device?", "the GPU is not in MIG mode");
        return Ok(());
    }
    let limit = ground.limit_mib();
    let (daemon, _) = Daemon::with_limits(ground, "mig", Some(limit), 100)?;
    let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
    let asked = format!("CUDA_VISIBLE_DEVICES={} of the daemon", ground.gpu.uuid);
    match ground.taken(&setup, limit * 3)? {
        Ok(taken) => {
            let answer = format!("{taken} MiB of {limit}");
            rows.claim("does MPS hold limits on a MIG device?", &asked, answer, taken <= limit && taken > 0);
        }
        Err(why) => rows.claim("does MPS hold limits on a MIG device?", &asked, why, false),
    }
    Ok(())
}
