//! Whether a container may have MPS as it is, whether it has to wait, or whether MPS has to begin anew for it. Pure.

use super::kept::Kept;
use super::protocol::State;
use super::reason::Reason;
use super::settings::Settings;

/// What is asked for a container that is about to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What MPS shall be.
    pub kept: Kept,
    /// Nobody else has a share of the device.
    pub is_idle: bool,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present<'a> {
    /// What it keeps to; none: nobody has asked yet.
    pub kept: Option<&'a Kept>,
    /// How it is.
    pub state: State,
    /// Why it is not as it should be.
    pub reason: Option<&'a Reason>,
    /// It is left alone for a while after a failure, or for good.
    pub is_resting: bool,
    /// Clients, in words; none: there are none.
    pub clients: Option<String>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered.
    Ready,
    /// It is answered later.
    Wait,
    /// MPS is started, now.
    Start,
    /// MPS ends, and begins anew as it is wanted.
    Renew,
    /// It is answered.
    Refuse(Reason),
}

/// Decides.
pub fn judge(wanted: &Wanted, present: &Present<'_>) -> Verdict {
    let Some(kept) = present.kept else { return Verdict::Start };
    if let Some(other) = difference(&kept.settings, &wanted.kept.settings) {
        return renew(wanted, present, &format!("MPS runs there with {other}"));
    }
    if !kept.settings.multi_user && kept.uid != wanted.kept.uid {
        let serves = format!("its MPS server serves user {} alone", kept.uid);
        return renew(wanted, present, &serves);
    }
    match (present.state, present.reason) {
        (State::Ready, None) => Verdict::Ready,
        (State::Down, _) if present.is_resting => Verdict::Start,
        (State::Down | State::Starting, _) => Verdict::Wait,
        (State::Fault, _) if wanted.is_idle && present.clients.is_none() => Verdict::Renew,
        (_, Some(reason)) => Verdict::Refuse(reason.clone()),
        (State::Fault | State::Blocked, None) => Verdict::Wait,
    }
}

fn renew(wanted: &Wanted, present: &Present<'_>, how_it_is: &str) -> Verdict {
    let what = &wanted.kept.settings.what;
    match (wanted.is_idle, &present.clients) {
        (true, None) => Verdict::Renew,
        (true, Some(clients)) => Verdict::Refuse(Reason::not_now(
            format!("{what}: {how_it_is}, and {clients} it"),
            format!(
                "end that, or `divvy mps restart {} --force`, which ends its work",
                wanted.kept.settings.uuid
            ),
        )),
        (false, _) => Verdict::Refuse(Reason::not_now(
            format!("{what}: {how_it_is}, and other containers have shares of it"),
            "wait until they have ended; `divvy ps` shows them",
        )),
    }
}

/// What the settings that are kept say of it and the wanted ones do not, in words; none where MPS may stay as it is.
fn difference(kept: &Settings, wanted: &Settings) -> Option<String> {
    let limits = |settings: &Settings| (settings.active_thread_percentage, settings.memory_mib);
    if limits(kept) != limits(wanted) {
        let (percentage, memory) = limits(kept);
        return Some(format!("other limits ({percentage} % of the SMs, {memory} MiB)"));
    }
    if kept.driver_version != wanted.driver_version {
        return Some(format!("the programs of driver {}", kept.driver_version));
    }
    let programs = |settings: &Settings| {
        (settings.control.clone(), settings.server.clone(), settings.driver_root.clone())
    };
    if programs(kept) != programs(wanted) {
        return Some(format!("another program, {}", kept.control.display()));
    }
    let rest =
        |settings: &Settings| (settings.multi_user, settings.shared_memory_bytes, settings.gpu_uuid.clone());
    (rest(kept) != rest(wanted)).then(|| "other settings".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(edit: impl FnOnce(&mut Kept)) -> Kept {
        let settings = Settings {
            uuid: "GPU-1".into(),
            what: "GPU 0".into(),
            gpu_uuid: "GPU-1".into(),
            is_mig: false,
            active_thread_percentage: 25,
            memory_mib: 5000,
            client_limit: 48,
            multi_user: false,
            at_boot: false,
            shared_memory_bytes: None,
            control: "/usr/bin/nvidia-cuda-mps-control".into(),
            server: "/usr/bin/nvidia-cuda-mps-server".into(),
            driver_root: "/".into(),
            driver_version: "550.163.01".into(),
        };
        let mut kept = Kept { settings, uid: 1000 };
        edit(&mut kept);
        kept
    }

    fn present<'a>(kept: &'a Kept, state: State, reason: Option<&'a Reason>) -> Present<'a> {
        Present { kept: Some(kept), state, reason, is_resting: false, clients: None }
    }

    #[test]
    fn by_the_state_of_what_is_wanted() {
        let as_kept = kept(|_| ());
        let wanted = |is_idle| Wanted { kept: kept(|_| ()), is_idle };
        let reason = Reason::not_now("it is so", "change it");
        let refused = Verdict::Refuse(reason.clone());
        for (state, reason, is_resting, is_idle, expected) in [
            (State::Ready, None, false, false, Verdict::Ready),
            (State::Ready, Some(&reason), false, false, refused.clone()),
            (State::Starting, Some(&reason), false, false, Verdict::Wait),
            (State::Down, Some(&reason), false, false, Verdict::Wait),
            (State::Down, Some(&reason), true, false, Verdict::Start),
            (State::Fault, Some(&reason), false, false, refused.clone()),
            (State::Fault, Some(&reason), false, true, Verdict::Renew),
            (State::Blocked, None, false, true, Verdict::Wait),
            (State::Blocked, Some(&reason), false, true, refused),
        ] {
            let present = Present { is_resting, ..present(&as_kept, state, reason) };
            assert_eq!(judge(&wanted(is_idle), &present), expected, "{present:?}");
        }
        let nothing = Present { kept: None, ..present(&as_kept, State::Down, None) };
        assert_eq!(judge(&wanted(false), &nothing), Verdict::Start);
    }

    #[test]
    fn what_takes_a_new_start_takes_it_when_nobody_minds() {
        type Edit = fn(&mut Kept);
        let edits: [(&str, Edit); 5] = [
            ("other limits (25 % of the SMs, 5000 MiB)", |kept| kept.settings.memory_mib = 1),
            ("the programs of driver 550.163.01", |kept| kept.settings.driver_version = "555.58.02".into()),
            ("another program, /usr/bin/nvidia-cuda-mps-control", |kept| kept.settings.control = "/a".into()),
            ("other settings", |kept| kept.settings.shared_memory_bytes = Some(1)),
            ("its MPS server serves user 1000 alone", |kept| kept.uid = 0),
        ];
        for (words, edit) in edits {
            let as_kept = kept(|_| ());
            let ready = present(&as_kept, State::Ready, None);
            let asks = |is_idle| Wanted { kept: kept(edit), is_idle };
            assert_eq!(judge(&asks(true), &ready), Verdict::Renew, "{words}");
            let refused = |verdict| match verdict {
                Verdict::Refuse(reason) => reason,
                other => panic!("{words}: {other:?}"),
            };
            let others = refused(judge(&asks(false), &ready));
            assert!(others.message.contains(words), "{}", others.message);
            assert!(others.message.ends_with("and other containers have shares of it") && others.status == 3);
            let used = Present { clients: Some("process 7 (a) uses".into()), ..ready };
            let clients = refused(judge(&asks(true), &used));
            assert!(clients.message.ends_with("and process 7 (a) uses it"), "{}", clients.message);
        }
        // Those need none.
        let other = kept(|kept| {
            kept.settings.what = "GPU 7".into();
            kept.settings.at_boot = true;
            kept.settings.client_limit = 60;
        });
        let as_kept = kept(|_| ());
        let verdict = judge(&Wanted { kept: other, is_idle: false }, &present(&as_kept, State::Ready, None));
        assert_eq!(verdict, Verdict::Ready);
    }
}
