//! How the daemon and `divvy mps` speak to supervisors: one is started where none runs, and asked over its socket. All of
//! it blocks, for as long as an MPS server takes to start. What goes wrong is an answer too.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hooks::lease::Lease;
use nix::errno::Errno;

use super::kept::Kept;
use super::place::{DIRECTORY, Place};
use super::protocol::{Answer, LINE_LIMIT, Request, Status, VERSION, What};
use super::settings::Settings;
use super::{lock, start};
use crate::held;
use crate::publish::read_regular;

/// How long a supervisor may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to answer: longer than the longest start of a server, with what may have to end before.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// How long one that was started may take until it has the lock.
const AGAIN: Duration = Duration::from_secs(2);
/// Between two looks whether it listens.
const PAUSE: Duration = Duration::from_millis(10);

/// Has a server run with these settings, for a container whose processes connect as `uid` of this machine. `is_idle`: no
/// other container has a share of the device.
pub fn ensure(state_dir: &Path, settings: &Settings, uid: u32, is_idle: bool) -> Answer {
    let place = Place::new(state_dir, &settings.uuid);
    ask(
        state_dir,
        &place,
        &settings.uuid,
        What::Ensure { settings: Box::new(settings.clone()), uid, is_idle },
    )
}

/// Has the work of these processes on the device end, as it has to before they are killed. Those that are no clients are
/// passed over.
pub fn terminate(state_dir: &Path, uuid: &str, pids: &[i32]) -> Answer {
    ask(state_dir, &Place::new(state_dir, uuid), uuid, What::Terminate { pids: pids.to_vec() })
}

/// Has MPS end and begin anew on the device, with other settings if there are any; `force`: whoever uses it.
pub fn restart(state_dir: &Path, uuid: &str, force: bool, settings: Option<&Settings>) -> Answer {
    let settings = settings.map(|settings| Box::new(settings.clone()));
    ask(state_dir, &Place::new(state_dir, uuid), uuid, What::Restart { force, settings })
}

/// Has supervisors look anew, so that what is known is of now. None is started for it.
pub fn look_again(state_dir: &Path) {
    for known in known(state_dir).into_iter().filter(|known| known.is_supervised) {
        // It looks before it terminates nobody. Whoever may not ask knows less.
        let _ = connect_and_ask(
            &Place::new(state_dir, &known.uuid),
            &Request { version: VERSION, what: What::Terminate { pids: Vec::new() } },
        );
    }
}

/// Has MPS end on the device, and the compute mode of before restored; `force`: whoever uses it.
pub fn stop(state_dir: &Path, uuid: &str, force: bool) -> Answer {
    ask(state_dir, &Place::new(state_dir, uuid), uuid, What::Stop { force })
}

/// A device that has, or had, a supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// What it keeps to; none where it has not been told yet.
    pub settings: Option<Settings>,
    /// The user of this machine whom its server serves, if it serves one at a time; else root.
    pub uid: u32,
    /// How it was when it last said so.
    pub status: Option<Status>,
    /// Its process lives. If not, the status is of another time.
    pub is_supervised: bool,
}

/// Every device below a state directory, in the order of their UUIDs. Anybody may ask.
pub fn known(state_dir: &Path) -> Vec<Known> {
    let entries = fs::read_dir(state_dir.join(DIRECTORY)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut known: Vec<Known> = names.filter_map(|uuid| look(state_dir, uuid)).collect();
    known.sort_by(|one, other| one.uuid.cmp(&other.uuid));
    known
}

/// Containers with a share of a device in mode mps, in words. A lease that cannot be read may be of one.
pub fn holders(state_dir: &Path, uuid: &str) -> Vec<String> {
    let (leases, unread) = held::leases(state_dir);
    let has_share =
        |lease: &&Lease| lease.mps.is_some() && lease.devices.iter().any(|leased| leased.uuid == uuid);
    let known = leases.running.iter().filter(has_share).map(|lease| held::who(&lease.container));
    let unknown = unread.first().map(|_| "a container whose lease cannot be read".to_owned());
    known.chain(unknown).collect()
}

/// None where nothing is kept and nobody keeps anything: MPS was stopped.
fn look(state_dir: &Path, uuid: String) -> Option<Known> {
    let place = Place::new(state_dir, &uuid);
    let (settings, uid) =
        Kept::read(&place).ok().flatten().map_or((None, 0), |kept| (Some(kept.settings), kept.uid));
    let status: Option<Status> = read_regular(&place.status(), LINE_LIMIT as u64)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    let is_supervised = is_supervised(&place, status.as_ref());
    (settings.is_some() || is_supervised).then_some(Known { uuid, settings, uid, status, is_supervised })
}

/// By the lock, which is root's to see; else by the process that the status names.
fn is_supervised(place: &Place, status: Option<&Status>) -> bool {
    match lock::holder(&place.lock()) {
        Ok(holder) => holder.is_some(),
        Err(_) => status.is_some_and(|status| {
            let command = fs::read(format!("/proc/{}/cmdline", status.supervisor_pid)).unwrap_or_default();
            command.split(|byte| *byte == 0).any(|word| word == b"supervise")
        }),
    }
}

/// Asks, and starts a supervisor if there is none.
fn ask(state_dir: &Path, place: &Place, uuid: &str, what: What) -> Answer {
    let request = Request { version: VERSION, what };
    let end = Instant::now() + ANSWER_LIMIT;
    let (mut began, mut started) = (Instant::now(), None::<Instant>);
    loop {
        if Instant::now() > end {
            return failed(uuid, &format!("it does not answer after {} seconds", ANSWER_LIMIT.as_secs()));
        }
        match connect_and_ask(place, &request) {
            Ok(Some(answer)) => return answer,
            // It ended before it answered: the next one is asked.
            Ok(None) => (began, started) = (Instant::now(), None),
            Err(error) if is_nobody_there(&error) => {}
            Err(error) => return failed(uuid, &error.to_string()),
        }
        match lock::holder(&place.lock()) {
            // One that met the last one, about to end, has ended too.
            Ok(None) if started.is_none_or(|then| then.elapsed() > AGAIN) => {
                if let Err(error) = start::supervisor(state_dir, uuid) {
                    return failed(uuid, &error.to_string());
                }
                started = Some(Instant::now());
            }
            Ok(_) => {}
            Err(error) => return failed(uuid, &error.to_string()),
        }
        if began.elapsed() > START_LIMIT {
            return failed(uuid, &format!("it does not listen after {} seconds", START_LIMIT.as_secs()));
        }
        thread::sleep(PAUSE);
    }
}

fn is_nobody_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// None if it hangs up without an answer.
fn connect_and_ask(place: &Place, request: &Request) -> io::Result<Option<Answer>> {
    let mut stream = UnixStream::connect(place.socket())?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut answer = Vec::new();
    let asked = stream
        .write_all(&line)
        .and_then(|()| BufReader::new((&stream).take(LINE_LIMIT as u64)).read_until(b'\n', &mut answer));
    match asked {
        Err(error) if is_hung_up(&error) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let limit = ANSWER_LIMIT.as_secs();
            return Err(io::Error::other(format!("it does not answer after {limit} seconds")));
        }
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    if answer.last() != Some(&b'\n') {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&answer)?))
}

fn is_hung_up(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::ECONNRESET | Errno::EPIPE))
}

fn failed(uuid: &str, why: &str) -> Answer {
    Answer::Refused {
        status: 1,
        message: format!("the MPS supervisor of {uuid} cannot be asked: {why}"),
        hint: Some(start::hint(uuid)),
    }
}

#[cfg(test)]
mod tests {
    use hooks::lease::{Container, LEASES, LeasedDevice, LeasedMps, VERSION};

    use super::*;

    /// Of a container whose first process is this one.
    fn lease(uuid: &str) -> Lease {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let container = Container {
            mount_namespace: 1,
            pid: i32::try_from(std::process::id()).unwrap(),
            start_time: fields.split_whitespace().nth(19).unwrap().parse().unwrap(),
            boot_id: boot_id.trim().into(),
            cgroup: None,
            uid: 0,
            process_uid: None,
            id: "3f2a".into(),
            bundle: "/b".into(),
            engine: None,
            name: Some("web".into()),
        };
        let name = "gpu=mps-0".parse().unwrap();
        let devices = vec![LeasedDevice { name, uuid: uuid.into(), is_share: true, pool: None }];
        let mps = Some(LeasedMps { front: "/f".into(), shared_memory: None });
        let (asked, remove) = (Vec::new(), Vec::new());
        Lease { version: VERSION, container, since: 0, asked, devices, remove, denied_by: None, mps }
    }

    #[test]
    fn who_has_a_share_and_who_may_have_one() {
        let dir = tempfile::tempdir().unwrap();
        let leases = dir.path().join(LEASES);
        let holders = |uuid: &str| holders(dir.path(), uuid);
        assert_eq!(holders("GPU-0"), [""; 0]);
        fs::create_dir(&leases).unwrap();
        let put = |name: &str, lease: &Lease| {
            fs::write(leases.join(name), serde_json::to_string(lease).unwrap()).unwrap();
        };
        put("1.json", &lease("GPU-1"));
        assert_eq!(holders("GPU-0"), [""; 0]);
        // Another container has its mount namespace's number.
        put("1-7.json", &lease("GPU-0"));
        assert_eq!(holders("GPU-0"), ["container web"]);
        fs::write(leases.join("2.json"), "{").unwrap();
        fs::write(leases.join("3.json"), "{").unwrap();
        let unknown = "a container whose lease cannot be read";
        assert_eq!(holders("GPU-0"), ["container web", unknown]);
        assert_eq!(holders("GPU-2"), [unknown]);
        fs::remove_dir_all(&leases).unwrap();
        fs::write(&leases, "").unwrap();
        assert_eq!(holders("GPU-0"), [unknown]);
    }
}
