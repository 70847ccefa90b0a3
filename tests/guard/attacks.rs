//! What a stranger can try at the socket that containers have. After each the daemon answers who may ask, and has no more
//! descriptors than before.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::{Daemon, Named, Server, wait};
use crate::stranger::{CLIENT, COMMANDS, CREDENTIALS, QUESTION, Stranger, passer_by, silent_container};
use crate::support::mps::MpsFiles;

pub const TRIALS: [Named; 9] = [
    ("a_thousand_with_commands", a_thousand_with_commands),
    ("a_thousand_who_leave", a_thousand_who_leave),
    ("who_is_no_client", who_is_no_client),
    ("what_is_no_type", what_is_no_type),
    ("descriptors_with_words", descriptors_with_words),
    ("a_client_with_commands", a_client_with_commands),
    ("who_claims_to_be_another", who_claims_to_be_another),
    ("who_says_nothing", who_says_nothing),
    ("a_container_that_says_nothing", a_container_that_says_nothing),
];

/// Does it, and demands that the daemon has lost nothing by it.
fn attack(daemon: &Daemon, attack: impl Fn()) {
    let before = daemon.descriptors();
    attack();
    assert_eq!(daemon.descriptors(), before);
}

fn a_thousand_with_commands(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    attack(&daemon, || {
        for _ in 0..1000 {
            let stranger = Stranger::greeted(&daemon.front());
            stranger.say_all(&[CREDENTIALS, COMMANDS, QUESTION[0], QUESTION[1]]);
            stranger.is_hung_up_on("commands");
        }
    });
}

/// A daemon without the guard keeps a descriptor of each that leaves after its credentials.
fn a_thousand_who_leave(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    attack(&daemon, || {
        for number in 0..3000 {
            match number % 3 {
                0 => drop(Stranger::connected(&daemon.front())),
                1 => drop(Stranger::greeted(&daemon.front())),
                _ => Stranger::greeted(&daemon.front()).say(CREDENTIALS),
            }
        }
    });
}

fn who_is_no_client(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    attack(&daemon, || {
        for kind in [0_u32, 1, 3, 4, 5, 10, 0x0200_0000, 0x0102, u32::MAX] {
            let stranger = Stranger::greeted(&daemon.front());
            stranger.say_all(&[CREDENTIALS, &kind.to_ne_bytes(), &0_u32.to_ne_bytes()]);
            stranger.is_hung_up_on(&format!("type {kind}"));
        }
    });
    assert_eq!(daemon.server(), None, "{}", daemon.output());
}

fn what_is_no_type(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let (both, glued, long) = ([CLIENT, COMMANDS].concat(), [CREDENTIALS, CLIENT].concat(), vec![2; 70000]);
    let odd: [&[u8]; 7] = [b"", &CLIENT[..3], &both, b"OUTBCRED", &glued, b"OUTBCUFD\0", &long];
    attack(&daemon, || {
        for message in odd {
            for first in [None, Some(CREDENTIALS)] {
                let stranger = Stranger::greeted(&daemon.front());
                first.into_iter().for_each(|first| stranger.say(first));
                stranger.say_all(&[message, CLIENT, COMMANDS, QUESTION[0], QUESTION[1]]);
                stranger.is_hung_up_on(&format!("{:?} after {first:?}", &message[..message.len().min(16)]));
            }
        }
        // A type in the place of the credentials is none.
        let stranger = Stranger::greeted(&daemon.front());
        stranger.say_all(&[CLIENT, CLIENT, COMMANDS, QUESTION[0], QUESTION[1]]);
        stranger.is_hung_up_on("a type first");
    });
}

fn descriptors_with_words(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let files: Vec<File> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
    let descriptors: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    attack(&daemon, || {
        for _ in 0..20 {
            let stranger = Stranger::greeted(&daemon.front());
            stranger.pass(CREDENTIALS, &descriptors);
            stranger.say(CLIENT);
            stranger.is_hung_up_on("descriptors with the credentials");
            let stranger = Stranger::greeted(&daemon.front());
            stranger.say(CREDENTIALS);
            stranger.pass(CLIENT, &descriptors);
            stranger.is_hung_up_on("descriptors with the type");
        }
    });
}

/// Who is let in as a client stays one: the daemon hands over a connection to the server, and hears nothing more.
fn a_client_with_commands(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let server = daemon.start_server();
    let seen = |event: &str| daemon.received().iter().filter(|seen| seen["event"] == event).count();
    attack(&daemon, || {
        for number in 1..=20 {
            let stranger = Stranger::greeted(&daemon.front());
            stranger.say_all(&[CREDENTIALS, CLIENT, COMMANDS, QUESTION[0], QUESTION[1]]);
            let of_server = stranger.is_handed_over();
            of_server.is_greeted();
            of_server.say(CREDENTIALS);
            wait("the server has the client", || seen("client") == number);
            stranger.is_hung_up_on("commands of a client");
            drop(of_server);
            wait("the server has seen it go", || seen("left") == number);
        }
    });
    assert_eq!(daemon.server(), Some(server));
}

/// As the daemon, whose server is its child; as that server; and as a process that is gone.
fn who_claims_to_be_another(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let server = daemon.start_server();
    attack(&daemon, || {
        for pid in [daemon.pid(), server] {
            for kind in [1_u32, 4, 10] {
                let stranger = Stranger::greeted(&daemon.front());
                stranger.claim(pid);
                stranger.say_all(&[&kind.to_ne_bytes(), QUESTION[0], QUESTION[1]]);
                stranger.is_hung_up_on(&format!("type {kind} as process {pid}"));
            }
        }
        for _ in 0..20 {
            kill(Pid::from_raw(daemon.pid().cast_signed()), Signal::SIGSTOP).unwrap();
            passer_by(&daemon.front());
            kill(Pid::from_raw(daemon.pid().cast_signed()), Signal::SIGCONT).unwrap();
        }
    });
    assert_eq!(daemon.server(), Some(server));
}

/// Root of the machine is waited for each time.
fn who_says_nothing(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    attack(&daemon, || {
        let silent: Vec<_> = (0..2).map(|_| Stranger::connected(&daemon.front()).unwrap()).collect();
        let half: Vec<_> = (0..2).map(|_| Stranger::connected(&daemon.front()).unwrap()).collect();
        half.iter().for_each(|stranger| stranger.say(CREDENTIALS));
        // The daemon hears others while they are still there.
        assert_eq!(daemon.answer("get_default_active_thread_percentage"), "100.0");
        for stranger in silent.iter().chain(&half) {
            assert_eq!(stranger.hears(), b"OUTBHELL\0");
            stranger.is_hung_up_on("silence");
        }
    });
}

/// It is waited for once, and not four hundred times: that would take longer than anything here may. It is heard all the
/// same when it says something.
fn a_container_that_says_nothing(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    daemon.start_server();
    attack(&daemon, || assert!(silent_container(&daemon.front(), 400)));
}
