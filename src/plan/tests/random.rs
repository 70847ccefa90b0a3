//! Random machines and configurations: whatever is asked for, an MPS server is told nothing that its device does not
//! have, and whatever is not left out keeps to its sums.

use std::cell::Cell;

use proptest::prelude::*;

use super::shares::after;
use super::*;

#[derive(Clone, Debug)]
struct Gpu {
    memory_mib: u64,
    reserved_mib: Option<u64>,
    sms: Option<u32>,
    mode: &'static str,
    overcommit: bool,
    shares: Vec<Share>,
}

#[derive(Clone, Debug)]
struct Share {
    replicas: u32,
    memory_mib: Option<u64>,
    sm_percent: Option<u32>,
    advisory: bool,
}

fn share() -> impl Strategy<Value = Share> {
    let memory = prop::option::weighted(0.3, 1..10_000u64);
    let percent = prop::option::weighted(0.3, 1..=100u32);
    (1..8u32, memory, percent, prop::bool::weighted(0.8)).prop_map(
        |(replicas, memory_mib, sm_percent, advisory)| Share { replicas, memory_mib, sm_percent, advisory },
    )
}

fn gpu() -> impl Strategy<Value = Gpu> {
    let mode = prop_oneof![4 => Just("mps"), 1 => Just("time-slice")];
    let shares = prop_oneof![share().prop_map(|share| vec![share]), prop::collection::vec(share(), 1..4)];
    (1..90_000u64, prop::option::of(0..1000u64), prop::option::of(1..200u32), mode, any::<bool>(), shares)
        .prop_map(|(memory_mib, reserved_mib, sms, mode, overcommit, shares)| Gpu {
            memory_mib,
            reserved_mib,
            sms,
            mode,
            overcommit,
            shares,
        })
}

fn config(gpus: &[Gpu]) -> String {
    let mut text = String::new();
    for (index, gpu) in gpus.iter().enumerate() {
        let (mode, overcommit) = (gpu.mode, gpu.overcommit);
        text +=
            &format!("[[gpu]]\nmatch = [\"{}\"]\nmode = \"{mode}\"\novercommit = {overcommit}\n", index + 1);
        for (number, share) in gpu.shares.iter().enumerate() {
            let name = char::from(b'a' + u8::try_from(number).unwrap());
            text += &format!("[[gpu.share]]\nname = \"{name}\"\nreplicas = {}\n", share.replicas);
            text += &format!("advisory = {}\n", share.advisory);
            text += &share.memory_mib.map_or_else(String::new, |mib| format!("memory = \"{mib}MiB\"\n"));
            text += &share.sm_percent.map_or_else(String::new, |percent| format!("sm_percent = {percent}\n"));
        }
    }
    text
}

/// Of the lab host, GPUs 1 to 7.
fn host(gpus: &[Gpu]) -> Host {
    let mut host = lab();
    for (gpu, random) in host.gpus.iter_mut().skip(1).zip(gpus) {
        gpu.memory_bytes = Some(random.memory_mib << 20);
        gpu.reserved_memory_bytes = random.reserved_mib.map(|mib| mib << 20);
        gpu.sms = random.sms;
    }
    host
}

#[test]
fn no_server_is_told_what_its_device_has_not() {
    let (shared, held, wished) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let cases = ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() };
    proptest!(cases, |(gpus in prop::collection::vec(gpu(), 1..8))| {
        let host = host(&gpus);
        let plan = after(&host, &config(&gpus), &Earlier::default());
        for (index, gpu) in gpus.iter().enumerate() {
            let unit = &host.gpus[index + 1];
            let shares: Vec<_> = plan.devices.iter().filter(|device| device.uuid == unit.uuid).collect();
            let settings: Vec<_> = plan.mps.iter().filter(|settings| settings.uuid == unit.uuid).collect();
            // Left out with a reason, or there with all of its shares.
            let problem = plan.problems.iter().any(|problem| problem.what == format!("GPU {}", index + 1));
            prop_assert_eq!(shares.is_empty(), problem);
            prop_assert_eq!(settings.len(), usize::from(gpu.mode == "mps" && !problem));
            let [settings] = settings[..] else { continue };
            let count: u32 = gpu.shares.iter().map(|share| share.replicas).sum();
            prop_assert_eq!(shares.len(), count as usize);
            prop_assert!(count <= settings.client_limit);
            let parts: Vec<_> = shares.iter().map(|share| share.mps.unwrap()).collect();
            let kept = gpu.reserved_mib.unwrap_or(0) + 64;
            prop_assert!((1..=gpu.memory_mib).contains(&(settings.memory_mib + kept)));
            prop_assert!((1..=100).contains(&settings.active_thread_percentage));
            prop_assert_eq!(parts.iter().map(|part| part.memory_mib).max(), Some(settings.memory_mib));
            prop_assert_eq!(
                parts.iter().map(|part| part.active_thread_percentage).max(),
                Some(settings.active_thread_percentage)
            );
            if !gpu.overcommit {
                prop_assert!(parts.iter().map(|part| part.memory_mib).sum::<u64>() + kept <= gpu.memory_mib);
                prop_assert!(parts.iter().map(|part| part.active_thread_percentage).sum::<u32>() <= 100);
            }
            for (share, part) in shares.iter().zip(&parts) {
                let by = |limit: Option<Limit>| limit.unwrap().by;
                prop_assert!(part.memory_mib >= 1 && part.active_thread_percentage >= 1);
                prop_assert_eq!(by(share.limits.memory) == Level::Mps, part.memory_mib == settings.memory_mib);
                prop_assert_eq!(
                    by(share.limits.sms) == Level::Mps,
                    part.active_thread_percentage == settings.active_thread_percentage
                );
                prop_assert!(share.sms.is_none_or(|sms| (1..=unit.sms.unwrap()).contains(&sms)));
                let number = usize::from(share.name.as_bytes()[0] - b'a');
                let is_wish = share.limits.memory == Some(super::super::shares::ADVISORY)
                    || share.limits.sms == Some(super::super::shares::ADVISORY);
                prop_assert!(!is_wish || gpu.shares[number].advisory);
                let count = if is_wish { &wished } else { &held };
                count.set(count.get() + 1);
            }
            shared.set(shared.get() + 1);
        }
        prop_assert_eq!(plan.mps.len(), plan.mps.iter().map(|settings| &settings.uuid).collect::<std::collections::BTreeSet<_>>().len());
    });
    // Machines on which nothing can be shared would show nothing.
    assert!(shared.get() > 200 && held.get() > 1000 && wished.get() > 200, "{shared:?} {held:?} {wished:?}");
}
