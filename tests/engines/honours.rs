//! What each engine honours of a CDI spec, found out with the specs of honours.sh: none of divvy's code is in between.
//! The answers are the tables of docs/engines.md.

use std::sync::OnceLock;

use crate::engine::{Container, ENGINES, Engine, MAPPED};
use crate::environment;
use crate::ground::{Ground, is_cgroup_v1, suite};
use crate::table;

const SPECS: &str = include_str!("honours.sh");
static WRITTEN: OnceLock<()> = OnceLock::new();

const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

const YES: &str = "yes";
/// The container starts without it.
const NO: &str = "**no**";
/// The container does not start.
const REFUSED: &str = "**refused**";

/// Fills the engine's column.
pub fn honours(ground: &Ground, engine: &Engine) {
    WRITTEN.get_or_init(|| {
        let names = ENGINES.map(|engine| engine.name);
        ground.command("in.sh", &[&["sh", "-c", SPECS, "honours.sh"][..], &names].concat()).ok();
    });
    let asked = Asked { ground, engine };
    let cells = [
        (table::VERSION, asked.version()),
        ("device node", asked.answer("node", "probe open /dev/probe-node", "/dev/probe-node: ENXIO")),
        ("its mode and group", asked.answer("node", "stat -c '%a %g' /dev/probe-node", "640 44")),
        ("its permissions `r`: no writing", asked.read_only_node()),
        ("its permissions `rw`: no mknod", asked.no_mknod()),
        ("node under another name (hostPath)", asked.renamed()),
        ("file, read-only", asked.mount("mount")),
        ("file, without a mount type", asked.mount("untyped")),
        ("tmpfs", asked.answer("tmpfs", "stat -f -c %T /srv/tmpfs", "tmpfs")),
        ("a volume of the user's over a file", asked.volume()),
        ("variable", asked.answer("env", "echo $PROBE", "cdi")),
        ("it goes before the user's", asked.variable_wins()),
        ("it is there in exec", asked.variable_in_exec()),
        ("createContainer hook", asked.hook()),
        ("a hook without `env` loads what the image's names", asked.environment()),
        ("it may write to a root that will be read-only", asked.writing_hook()),
        ("runs of it for a device named twice", asked.runs(2).to_string()),
        ("a failing hook stops the start", asked.failing_hook()),
        ("node and hook in a user namespace", asked.user_namespace()),
        ("additionalGids (0.7.0)", asked.groups()),
        ("kind with a dot (0.6.0)", honoured(says(&asked.of_kind("with.dot"), "echo $PROBE"), "cdi")),
        ("devices of one kind in two files", asked.two_files()),
        ("a spec renamed into place is seen at once", asked.replaced()),
        ("cdiVersion", asked.versions()),
    ];
    let place = table::Place {
        page: "engines.md",
        heading: &format!("Debian {}", suite()),
        columns: &ENGINES.map(|engine| engine.name),
        rows: &cells.each_ref().map(|(row, _)| *row),
        trials: "honours",
        // What cgroup v1 admits must be the same, so that one table serves for both.
        is_only_compared: is_cgroup_v1(),
    };
    place.compare(engine.name, &cells);
}

/// What a script in a container prints, or nothing where the container does not start.
fn says(container: &Container, script: &str) -> Option<String> {
    let output = container.sh(&format!("echo started; {script}"));
    output.stdout.strip_prefix("started\n").map(|said| said.trim_end().to_owned())
}

fn honoured(said: Option<String>, wanted: &str) -> String {
    match said {
        None => REFUSED,
        Some(said) if said == wanted => YES,
        Some(_) => NO,
    }
    .to_owned()
}

/// Containers of one engine.
struct Asked<'a> {
    ground: &'a Ground,
    engine: &'a Engine,
}

impl<'a> Asked<'a> {
    fn container(&self, devices: &[&str]) -> Container<'a> {
        let container = self.engine.container(self.ground, &[]);
        devices.iter().fold(container, |container, device| {
            container.option(&format!("--device=example.com/probe={device}"))
        })
    }

    fn of_kind(&self, class: &str) -> Container<'a> {
        self.engine.container(self.ground, &[]).option(&format!("--device=example.com/{class}=one"))
    }

    fn answer(&self, device: &str, script: &str, wanted: &str) -> String {
        honoured(says(&self.container(&[device]), script), wanted)
    }

    fn version(&self) -> String {
        let program = match self.engine.name {
            name if name.starts_with("docker") => "dockerd",
            name if name.starts_with('c') => "containerd",
            _ => "podman",
        };
        let runtime = self.engine.name.rsplit('-').next().unwrap_or_default();
        let number = |program: &str| {
            let output = self.ground.sh(&format!("{program} --version"));
            let mut words = output.stdout.split_whitespace().map(|word| word.trim_start_matches('v'));
            let number = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
            let is_number = |c: char| c.is_ascii_digit() || c == '.';
            number.unwrap_or_default().chars().take_while(|c| is_number(*c)).collect::<String>()
        };
        format!("{}, {runtime} {}", number(program), number(runtime))
    }

    fn read_only_node(&self) -> String {
        let answers = "/dev/probe-node: ENXIO\n/dev/probe-node: EPERM";
        self.answer("read", "probe read /dev/probe-node; probe open /dev/probe-node", answers)
    }

    fn no_mknod(&self) -> String {
        let container = self.container(&["node"]).option("--cap-add=MKNOD");
        honoured(says(&container, "probe mknod /tmp/made 195 200"), "/tmp/made: mknod EPERM")
    }

    fn renamed(&self) -> String {
        self.answer("renamed", "probe open /dev/renamed", "/dev/renamed: ENXIO")
    }

    fn mount(&self, device: &str) -> String {
        let script = "cat /srv/file; probe open /srv/file; sed -n '\\# /srv/file #p' /proc/self/mountinfo";
        let said = says(&self.container(&[device]), script).map(|said| {
            let mut lines = said.lines();
            let file = [lines.next(), lines.next()].map(Option::unwrap_or_default);
            let options = lines.next().and_then(|line| line.split(' ').nth(5)).unwrap_or_default();
            let has = |wanted: &str| options.split(',').any(|option| option == wanted);
            // A user's root may not write to the file either way.
            let refused = ["/srv/file: EROFS", "/srv/file: EACCES"].contains(&file[1]);
            (file[0] == "mounted" && refused && ["ro", "nosuid", "nodev"].into_iter().all(has)).to_string()
        });
        honoured(said, "true")
    }

    fn volume(&self) -> String {
        let container = self.container(&["mount"]).option("--volume=/srv/probe/other:/srv/file");
        match says(&container, "cat /srv/file").as_deref() {
            Some("other") => "hides it",
            Some("mounted") => "is hidden by it",
            _ => REFUSED,
        }
        .to_owned()
    }

    fn variable_wins(&self) -> String {
        honoured(says(&self.container(&["env"]).option("--env=PROBE=user"), "echo $PROBE"), "cdi")
    }

    fn variable_in_exec(&self) -> String {
        let name = format!("probe-exec-{}", self.engine.name);
        let [said] = self.container(&["env"]).exec(&name, ["echo said: $PROBE"]);
        honoured(said.stdout.strip_prefix("said:").map(|said| said.trim().to_owned()), "cdi")
    }

    fn hook(&self) -> String {
        if self.runs(1) == 1 { YES } else { NO }.to_owned()
    }

    /// How often the hook of a device runs that is named so many times.
    fn runs(&self, times: usize) -> usize {
        let trace = format!("/tmp/probe-{}", self.engine.name);
        self.ground.sh(&format!("rm -f {trace}")).ok();
        let device = format!("--device=example.com/runs-{}=one", self.engine.name);
        let container = (0..times).fold(self.container(&[]), |container, _| container.option(&device));
        container.sh("true").ok();
        self.ground.sh(&format!("cat {trace}")).stdout.lines().count()
    }

    fn writing_hook(&self) -> String {
        let container = self.container(&["writes"]).option("--read-only");
        let script = "cat /usr/probe; echo x 2>/dev/null >/usr/x || echo read-only";
        honoured(says(&container, script), "written\nread-only")
    }

    fn environment(&self) -> String {
        environment::prepare(self.ground);
        let device = format!("--device=example.com/preload-{}=one", self.engine.name);
        let said = says(&self.container(&[]).image("poc").option(&device), "true");
        if said.is_none() {
            return REFUSED.to_owned();
        }
        if environment::was_loaded(self.ground, self.engine.name) { "**yes**" } else { "no" }.to_owned()
    }

    fn failing_hook(&self) -> String {
        let output = self.container(&["fails"]).sh("echo started");
        match (output.status != 0 && output.stdout.is_empty(), output.stderr.contains("the hook says why")) {
            (true, true) => "yes, and its message is shown",
            (true, false) => "yes, without its message",
            (false, _) => NO,
        }
        .to_owned()
    }

    fn user_namespace(&self) -> String {
        let options = if self.engine.user_namespace.is_empty() { MAPPED } else { self.engine.user_namespace };
        let container = self.container(&["open", "hook"]);
        let container = options.iter().fold(container, |container, option| container.option(option));
        // In no namespace of its own all numbers are mapped, and that is printed.
        let script = "probe open /dev/probe-node; sed -n /4294967295/p /proc/self/uid_map";
        honoured(says(&container, script), "/dev/probe-node: ENXIO")
    }

    fn groups(&self) -> String {
        let said = says(&self.of_kind("groups").option("--user=1000"), "id -G");
        let given = said.map(|said| said.split(' ').any(|group| group == "44").to_string());
        honoured(given, "true")
    }

    fn two_files(&self) -> String {
        honoured(says(&self.container(&["env", "second"]), "echo $PROBE $SECOND"), "cdi cdi")
    }

    fn replaced(&self) -> String {
        let class = format!("replaced-{}", self.engine.name);
        let seen = ["before", "after"].map(|value| {
            let script = format!(
                "cd /etc/cdi; sed s/with.dot/{class}/\\;s/=cdi/={value}/ probe-dot.json >{class}.tmp && \
                 mv {class}.tmp {class}.json"
            );
            self.ground.sh(&script).ok();
            honoured(says(&self.of_kind(&class), "echo $PROBE"), value)
        });
        seen.into_iter().find(|seen| seen != YES).unwrap_or(YES.to_owned())
    }

    fn versions(&self) -> String {
        let reads = |version: &&str| {
            let class = format!("v{}", version.replace('.', ""));
            says(&self.of_kind(&class), "echo $PROBE").as_deref() == Some("cdi")
        };
        let read: Vec<&str> = VERSIONS.into_iter().filter(reads).collect();
        match read[..] {
            [] => NO.to_owned(),
            [only] => only.to_owned(),
            [first, .., last] => format!("{first} to {last}"),
        }
    }
}
