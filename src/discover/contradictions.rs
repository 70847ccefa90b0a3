//! GPUs and MIG devices that claim to be the same: a driver's defect, or a recorded host that lies. Two names for one
//! device, or one node for two, would give a container what is another's, so none of them is given out.

use std::collections::BTreeMap;

use super::host::{Capability, Contradiction, Gpu, MigDevice};

/// A fact that only one owner on a host can have.
struct Claim {
    /// In words, and its value with what it is unique in.
    fact: (&'static str, String),
    /// The GPU instance or compute instance whose fact it is; none where it is the device itself.
    owner: Option<String>,
}

impl Claim {
    fn new(fact: &'static str, value: impl ToString) -> Self {
        Self { fact: (fact, value.to_string()), owner: None }
    }
}

/// The GPUs and MIG devices that nobody else claims to be, and the others with the reason.
pub fn take_out(mut gpus: Vec<Gpu>) -> (Vec<Gpu>, Vec<Contradiction>) {
    let of_gpus = clashes(gpus.iter().map(|gpu| (gpu_name(gpu), gpu_claims(gpu))).collect());
    let devices = gpus.iter().flat_map(|gpu| gpu.mig_devices.iter().map(move |mig| (gpu, mig)));
    let devices = devices.map(|(gpu, mig)| (mig_name(gpu, mig), mig_claims(gpu, mig)));
    let mut of_devices = clashes(devices.collect()).into_iter();

    let mut contradictions = Vec::new();
    let mut of_gpus = of_gpus.into_iter();
    gpus.retain_mut(|gpu| {
        let of_gpu = of_gpus.next().flatten();
        let mut in_gpu = Vec::new();
        let index = gpu.index;
        gpu.mig_devices.retain(|mig| {
            let clash = of_devices.next().flatten();
            let alone = clash.is_none();
            in_gpu.extend(clash.map(|clash| clash.of(index, Some(mig.index))));
            alone
        });
        // A GPU that is left out takes its MIG devices with it.
        match of_gpu {
            None => {
                contradictions.append(&mut in_gpu);
                true
            }
            Some(clash) => {
                contradictions.push(clash.of(index, None));
                false
            }
        }
    });
    (gpus, contradictions)
}

/// How a device is called, and by its UUID too where that is the only difference.
struct Name {
    by_index: String,
    uuid: String,
}

struct Clash {
    what: String,
    why: String,
}

impl Clash {
    fn of(self, gpu: u32, mig: Option<u32>) -> Contradiction {
        Contradiction { what: self.what, gpu, mig, why: self.why }
    }
}

/// The first clash of each device, in their order.
fn clashes(devices: Vec<(Name, Vec<Claim>)>) -> Vec<Option<Clash>> {
    let owner = |device: usize, claim: &Claim| claim.owner.clone().unwrap_or_else(|| device.to_string());
    // By fact and owner, the first device that claims it: a record with many devices is looked through once.
    let mut claimants: BTreeMap<_, BTreeMap<String, usize>> = BTreeMap::new();
    for (number, (_, claims)) in devices.iter().enumerate() {
        for claim in claims {
            claimants.entry(&claim.fact).or_default().entry(owner(number, claim)).or_insert(number);
        }
    }
    let clash = |(number, (name, claims)): (usize, &(Name, Vec<Claim>))| {
        claims.iter().find_map(|claim| {
            let own = owner(number, claim);
            let (_, other) = claimants.get(&claim.fact)?.iter().find(|(owner, _)| **owner != own)?;
            let (fact, value) = &claim.fact;
            let [what, other] = told_apart(name, &devices[*other].0);
            Some(Clash { what, why: format!("{other} has the same {fact} {value}") })
        })
    };
    devices.iter().enumerate().map(clash).collect()
}

fn told_apart(one: &Name, other: &Name) -> [String; 2] {
    let same_index = one.by_index == other.by_index;
    [one, other].map(|name| match same_index {
        true => format!("{} ({})", name.by_index, name.uuid),
        false => name.by_index.clone(),
    })
}

fn gpu_name(gpu: &Gpu) -> Name {
    Name { by_index: format!("GPU {}", gpu.index), uuid: gpu.uuid.clone() }
}

fn gpu_claims(gpu: &Gpu) -> Vec<Claim> {
    let mut claims = vec![Claim::new("index", gpu.index)];
    claims.extend(gpu.minor.map(|minor| Claim::new("minor number", minor)));
    claims.extend(gpu.pci_address.iter().map(|address| Claim::new("PCI address", address)));
    claims.push(Claim::new("UUID", gpu.uuid.to_ascii_lowercase()));
    claims
}

fn mig_name(gpu: &Gpu, mig: &MigDevice) -> Name {
    Name { by_index: format!("MIG device {}:{}", gpu.index, mig.index), uuid: mig.uuid.clone() }
}

fn mig_claims(gpu: &Gpu, mig: &MigDevice) -> Vec<Claim> {
    let gpu_instance = format!("gpu{}/gi{}", gpu.index, mig.gpu_instance);
    let compute_instance = format!("{gpu_instance}/ci{}", mig.compute_instance);
    let mut claims = vec![
        Claim::new("index", format!("{}:{}", gpu.index, mig.index)),
        Claim::new("compute instance", &compute_instance),
        Claim::new("UUID", mig.uuid.to_ascii_lowercase()),
    ];
    // Compute instances of one GPU instance share its capability; what else shares one would be opened by it too.
    for (owner, capability) in
        [(gpu_instance, &mig.gpu_instance_capability), (compute_instance, &mig.compute_instance_capability)]
    {
        if let Capability::Node(node) = capability {
            let fact = ("capability", node.path.display().to_string());
            claims.push(Claim { fact, owner: Some(owner) });
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use crate::discover::assemble;
    use crate::discover::host::{Contradiction, Host};
    use crate::discover::sim::SimHost;
    use crate::nvml::facts::{Facts, MigDeviceFacts};

    /// The host that the lab host's facts make after a change.
    fn lab(change: impl FnOnce(&mut Facts)) -> Host {
        let sim = SimHost::parse("a100-lab").unwrap();
        let mut facts = sim.facts();
        change(&mut facts);
        assemble(facts, &sim.tree(), Vec::new(), std::path::Path::new("/var/run/cdi/divvy.json")).unwrap()
    }

    fn told(host: &Host) -> Vec<String> {
        host.contradictions.iter().map(|Contradiction { what, why, .. }| format!("{what}: {why}")).collect()
    }

    #[test]
    fn a_real_host_has_none() {
        assert_eq!(lab(|_| {}).contradictions, []);
    }

    #[test]
    fn no_gpu_that_another_claims_to_be_is_left() {
        type Change = fn(&mut Facts);
        let cases: [(Change, [&str; 2]); 3] = [
            (
                |facts| facts.gpus[3].minor = Some(1),
                ["GPU 1: GPU 3 has the same minor number 1", "GPU 3: GPU 1 has the same minor number 1"],
            ),
            (
                |facts| facts.gpus[3].uuid = facts.gpus[1].uuid.to_uppercase(),
                [
                    "GPU 1: GPU 3 has the same UUID gpu-934e3c41-2e9a-efbf-5e75-a17cc8913c9e",
                    "GPU 3: GPU 1 has the same UUID gpu-934e3c41-2e9a-efbf-5e75-a17cc8913c9e",
                ],
            ),
            (
                |facts| facts.gpus[3].index = 1,
                [
                    "GPU 1 (GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e): GPU 1 (GPU-X) has the same index 1",
                    "GPU 1 (GPU-X): GPU 1 (GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e) has the same index 1",
                ],
            ),
        ];
        for (change, contradictions) in cases {
            let host = lab(change);
            let third = lab(|_| {}).gpus[3].uuid.clone();
            let told: Vec<_> = told(&host).iter().map(|line| line.replace(&third, "GPU-X")).collect();
            assert_eq!(told, contradictions);
            let left: Vec<_> = host.gpus.iter().map(|gpu| gpu.index).collect();
            assert_eq!(left, [0, 2, 4, 5, 6, 7]);
        }
    }

    #[test]
    fn no_mig_device_that_another_claims_to_be_is_left() {
        type Change = fn(&mut MigDeviceFacts);
        let cases: [(&str, Change); 3] = [
            ("index 0:0", |device| device.index = 0),
            ("UUID mig-c42101f0-a1fa-5b68-8908-7c5c887f28bd", |device| {
                device.uuid = "MIG-c42101f0-a1fa-5b68-8908-7c5c887f28bd".into();
            }),
            ("compute instance gpu0/gi2/ci0", |device| device.gpu_instance = 2),
        ];
        for (fact, change) in cases {
            let host = lab(|facts| change(&mut facts.gpus[0].mig.as_mut().unwrap().devices[3]));
            let told = told(&host);
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told.iter().all(|line| line.ends_with(&format!(" has the same {fact}"))), "{told:?}");
            let left: Vec<_> = host.gpus[0].mig_devices.iter().map(|mig| mig.index).collect();
            assert_eq!(left, [1, 2]);
            assert_eq!(host.contradictions[0].gpu, 0);
        }
    }

    #[test]
    fn a_gpu_takes_its_mig_devices_with_it() {
        let host = lab(|facts| facts.gpus[0].minor = Some(1));
        assert_eq!(told(&host).len(), 2);
        assert_eq!(host.gpus[0].index, 2);
    }
}
