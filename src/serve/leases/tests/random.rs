//! Random histories, each event compared with what the model expects, and the leases with the model's after it.

use std::cell::Cell;

use hooks::lease::LeasedDevice;
use proptest::prelude::*;

use super::model::{Expected, Model};
use super::*;

/// What happens, in numbers that proptest can make smaller.
#[derive(Clone, Debug)]
enum Step {
    Ask { container: usize, request: usize },
    AskAgain { container: usize },
    Left { ago: u64 },
    FirstProcessGone { container: usize },
    Gone { container: usize },
    Failed { container: usize },
    Served { container: usize },
    Unserved { container: usize, status: u8 },
    Time { seconds: u64 },
    Plan { plan: usize },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..CONTAINERS, 0..REQUESTS.len()).prop_map(|(container, request)| Step::Ask { container, request }),
        4 => (0..CONTAINERS).prop_map(|container| Step::AskAgain { container }),
        1 => (0..4u64).prop_map(|ago| Step::Left { ago }),
        2 => (0..CONTAINERS).prop_map(|container| Step::FirstProcessGone { container }),
        5 => (0..CONTAINERS).prop_map(|container| Step::Gone { container }),
        1 => (0..CONTAINERS).prop_map(|container| Step::Failed { container }),
        2 => (0..CONTAINERS).prop_map(|container| Step::Served { container }),
        8 => (0..CONTAINERS, prop_oneof![Just(1), Just(3), Just(5)])
            .prop_map(|(container, status)| Step::Unserved { container, status }),
        2 => prop_oneof![3 => 1..25u64, 1 => 60..130u64].prop_map(|seconds| Step::Time { seconds }),
        1 => (0..plans().len()).prop_map(|plan| Step::Plan { plan }),
        1 => Just(Step::Restart),
    ]
}

const CONTAINERS: usize = 10;

const REQUESTS: &[&[&str]] = &[
    &["a"],
    &["a"],
    &["a", "a"],
    &["b"],
    &["a", "b"],
    &["whole"],
    &["whole", "a"],
    &["whole", "whole"],
    &["whole", "a", "b"],
    &["whole", "b", "b"],
    &["a-0"],
    &["a-1", "a"],
    &["a-2", "whole"],
    &["b-0", "b-0", "a"],
    &["0"],
    &["1", "GPU-1"],
    &["GPU-0", "a"],
    &["0", "a-0"],
    &["all"],
    &["mig-1g"],
    &["2:1"],
    &["MIG-2-0", "mig-1g"],
    &["c"],
    &["m"],
    &["m", "b"],
    &["m", "m"],
    &["m-1"],
    &["m-0", "0"],
];

/// Plans that have much in common. In each a name may mean another device, be gone, or be of a pool that nobody waits for.
fn plans() -> Vec<Kept> {
    let mut one_waits = plan("whole a*2 b*1 | whole a*1 b*1 | 1g 1g").any_number().wait(20);
    one_waits.pools[1].wait_seconds = 0;
    let mut one_user = plan("a*2 | m*3:one | m*2:mps | m*1 | open | whole").any_number().wait(10);
    one_user.pools.iter_mut().for_each(|pool| pool.wait_seconds *= u64::from(pool.name == "m"));
    vec![
        one_user,
        plan("m*3:one | 1g 1g | m*1:one | a*1").any_number(),
        plan("whole a*2 b*1 | whole a*2 b*1 | 1g 1g").any_number().wait(20),
        plan("whole a*1 | whole a*2 b*2 | 1g 1g").any_number(),
        one_waits.pack().cap("1001", Some(2), None),
        plan("a*3 | whole b*2 | 1g 1g-open").wait(15).cap("*", None, Some(&["a", "mig-1g"])),
    ]
}

struct Run {
    leases: Leases,
    model: Model,
    incarnations: [u64; CONTAINERS],
    last: [usize; CONTAINERS],
    ticket: u64,
}

impl Run {
    fn new() -> Self {
        let mut run = Self {
            leases: Leases::new("/run/divvy".into()),
            model: Model::default(),
            incarnations: [0; CONTAINERS],
            last: [0; CONTAINERS],
            ticket: 0,
        };
        run.happens(&Event::Plan(Box::new(plans().swap_remove(0))));
        run
    }

    fn key(&self, container: usize) -> Key {
        Key { pid: i32::try_from(container).unwrap() + 1, start_time: self.incarnations[container] }
    }

    fn ask(&mut self, container: usize, request: usize) -> Event {
        self.ticket += 1;
        self.last[container] = request;
        let key = self.key(container);
        let mut ask = ask(&self.model.plan, key.pid, REQUESTS[request], self.model.now);
        ask.ticket = self.ticket;
        ask.container.uid = [0, 1001, 1002][container % 3];
        ask.container.process_uid = [Some(0), Some(1001), Some(1001), None, Some(7)][container % 5];
        ask.container.start_time = key.start_time;
        ask.container.mount_namespace += 100 * key.start_time;
        Event::Asked(Box::new(ask))
    }

    fn step(&mut self, step: &Step) {
        let event = match *step {
            Step::Ask { container, request } => self.ask(container, request),
            Step::AskAgain { container } => self.ask(container, self.last[container]),
            Step::Left { ago } => Event::Left(self.ticket.saturating_sub(ago)),
            Step::FirstProcessGone { container } => Event::FirstProcessGone(self.key(container)),
            Step::Gone { container } => {
                let key = self.key(container);
                self.incarnations[container] += 1;
                Event::Gone(key)
            }
            Step::Failed { container } => Event::Failed(self.key(container)),
            Step::Served { container } => Event::Served(self.key(container)),
            Step::Unserved { container, status } => {
                Event::Unserved(self.key(container), Box::new(no(status)))
            }
            Step::Time { seconds } => Event::Time(Duration::from_secs(self.model.now + seconds)),
            Step::Plan { plan } => Event::Plan(Box::new(plans().swap_remove(plan))),
            Step::Restart => return self.restart(),
        };
        self.happens(&event);
    }

    /// Who waited has lost the connection; what was ending is seen to end again.
    fn restart(&mut self) {
        let before = std::mem::take(&mut self.leases);
        self.model.waiters.clear();
        self.model.avoided.clear();
        self.model.holders.iter_mut().for_each(|holder| holder.is_starting = false);
        assert_eq!(self.leases.handle(Event::Plan(Box::new(self.model.plan.clone()))), []);
        for lease in before.all() {
            let clash = self.leases.handle(Event::Adopted(Box::new(lease.clone())));
            assert_eq!(clash, []);
        }
        for holder in self.model.holders.iter().filter(|holder| holder.is_ending) {
            let gone = Event::FirstProcessGone(Key::of(&holder.ask.container));
            assert_eq!(self.leases.handle(gone), []);
        }
        self.compare();
    }

    fn happens(&mut self, event: &Event) {
        let decisions = self.leases.handle(event.clone());
        let picked = |ticket: u64| {
            let grant = decisions.iter().find_map(|decision| match decision {
                Decision::Grant(of, lease) if *of == ticket => Some(lease),
                _ => None,
            });
            grant.map(|lease| lease.devices.clone())
        };
        let expected = self.model.hear(event, &picked);
        let decided: Vec<_> = decisions
            .iter()
            .map(|decision| match decision {
                Decision::Grant(ticket, _) => Expected::Grant(*ticket),
                Decision::Refuse(ticket, refusal) => Expected::Refuse(*ticket, refusal.status()),
                Decision::Queue(ticket, seconds, ahead) => Expected::Queue(*ticket, *seconds, *ahead),
                Decision::End(lease) => Expected::End(Key::of(&lease.container)),
                Decision::Withdraw(lease) => Expected::Withdraw(Key::of(&lease.container)),
                Decision::Warn(warning) => panic!("{warning}"),
            })
            .collect();
        let what = match event {
            Event::Plan(plan) => plan.generation.clone(),
            Event::Asked(ask) => format!("{} asks {:?}", ask.container.pid, ask.request.devices),
            other => format!("{other:?}"),
        };
        assert_eq!(decided, expected, "{what}");
        // Every refusal can be put in words, and whoever waits for a server is told for how long.
        for decision in &decisions {
            if let Decision::Grant(_, lease) = decision {
                let told = self.model.told(Key::of(&lease.container));
                assert_eq!(self.leases.longest_start(Key::of(&lease.container)), told, "{what}");
            }
            if let Decision::Refuse(_, refusal) = decision {
                assert!(!refusal.message(&|at| at.to_string()).is_empty());
            }
        }
        self.compare();
    }

    fn compare(&self) {
        let devices = |devices: &[LeasedDevice]| devices.to_vec();
        let mut model: Vec<_> = self
            .model
            .holders
            .iter()
            .map(|holder| (Key::of(&holder.ask.container), devices(&holder.devices)))
            .collect();
        model.sort_by_key(|(key, _)| *key);
        let leases: Vec<_> =
            self.leases.all().map(|lease| (Key::of(&lease.container), devices(&lease.devices))).collect();
        assert_eq!(leases, model);
        let until = self.model.waiters.iter().filter_map(|waiter| {
            let queue = waiter.queue?;
            let tried = waiter.tried.iter().filter(|_| queue.is_for_pools);
            let again = tried.map(|uuid| self.model.avoided.get(uuid).copied().unwrap_or(0));
            again.chain([queue.until]).min()
        });
        let until = until.min();
        assert_eq!(self.leases.next_deadline(), until.map(Duration::from_secs));
    }
}

#[test]
fn any_history_goes_as_the_model_has_it() {
    let (grants, queues, tries) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let config = ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..60))| {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
            grants.set(grants.get() + run.model.holders.len());
            queues.set(queues.get() + run.model.waiters.len());
            let are_tried_again = run.model.holders.iter().filter(|holder| !holder.tried.is_empty());
            tries.set(tries.get() + are_tried_again.count());
        }
    });
    // Histories in which nothing is held and nobody waits would show nothing.
    let enough = grants.get() > 5_000 && queues.get() > 500 && tries.get() > 100;
    assert!(enough, "{grants:?} {queues:?} {tries:?}");
}
