//! What each engine honours of a CDI spec, found out with specs of a vendor that nobody has (example.com): none of
//! divvy's code is in between. The answers are the tables of docs/engines.md.

use std::sync::OnceLock;

use crate::engine::{Container, Engine};
use crate::ground::{Ground, Output, suite};
use crate::table;

/// Specs for all engines. The node has no driver: ENXIO is "admitted", EPERM "denied". Versions are in files of their own,
/// since an engine refuses a whole file.
const SPECS: &str = r#"set -e
mknod -m 666 /dev/probe-node c 195 200
mkdir -p /srv/probe && echo mounted >/srv/probe/file && echo other >/srv/probe/other && chmod 755 /srv/probe
cd /etc/cdi
hook='"path":"/usr/bin/sh","env":["PATH=/usr/bin"],"hookName":"createContainer"'
cat >probe.json <<J
{"cdiVersion":"0.5.0","kind":"example.com/probe","devices":[
{"name":"node","containerEdits":{"deviceNodes":[{"path":"/dev/probe-node","type":"c","permissions":"rw","fileMode":416,"gid":44}]}},
{"name":"renamed","containerEdits":{"deviceNodes":[{"path":"/dev/renamed","hostPath":"/dev/probe-node","type":"c","permissions":"rw","fileMode":438}]}},
{"name":"read","containerEdits":{"deviceNodes":[{"path":"/dev/probe-node","type":"c","permissions":"r","fileMode":438}]}},
{"name":"mount","containerEdits":{"mounts":[{"hostPath":"/srv/probe/file","containerPath":"/srv/file","type":"bind","options":["ro","nosuid","nodev","rbind","rprivate"]}]}},
{"name":"env","containerEdits":{"env":["PROBE=cdi"]}},
{"name":"fails","containerEdits":{"hooks":[{$hook,"args":["sh","-c","echo the hook says why >&2; exit 7"]}]}}
]}
J
for engine in docker-runc podman-crun podman-runc rootless-crun ctr-runc cri-runc; do
    echo "{\"cdiVersion\":\"0.5.0\",\"kind\":\"example.com/hook-$engine\",\"devices\":[{\"name\":\"one\",\"containerEdits\":{\"hooks\":[{$hook,\"args\":[\"sh\",\"-c\",\"echo ran >>/tmp/probe-$engine\"]}]}}]}" >probe-hook-$engine.json
done
echo '{"cdiVersion":"0.5.0","kind":"example.com/probe","devices":[{"name":"second","containerEdits":{"env":["SECOND=cdi"]}}]}' >probe-second.json
echo '{"cdiVersion":"0.7.0","kind":"example.com/groups","devices":[{"name":"one","containerEdits":{"additionalGids":[44]}}]}' >probe-groups.json
echo '{"cdiVersion":"0.6.0","kind":"example.com/with.dot","devices":[{"name":"one","containerEdits":{"env":["PROBE=cdi"]}}]}' >probe-dot.json
for version in 0.5.0 0.6.0 0.7.0 0.8.0 1.0.0 1.1.0; do
    echo "{\"cdiVersion\":\"$version\",\"kind\":\"example.com/v$(echo $version | tr -d .)\",\"devices\":[{\"name\":\"one\",\"containerEdits\":{\"env\":[\"PROBE=cdi\"]}}]}" >probe-$version.json
done
"#;

static WRITTEN: OnceLock<()> = OnceLock::new();

const YES: &str = "yes";
const NO: &str = "**no**";

/// Fills the engine's column.
pub fn honours(ground: &Ground, engine: &Engine) {
    WRITTEN.get_or_init(|| {
        ground.sh(SPECS).ok();
    });
    let asked = Asked { ground, engine };
    let cells = [
        ("version", asked.version()),
        ("device node", yes(asked.says("node", "probe open /dev/probe-node") == "/dev/probe-node: ENXIO")),
        ("its mode and group", yes(asked.says("node", "stat -c '%a %g' /dev/probe-node") == "640 44")),
        ("its permissions `r`, without `w`", asked.read_only_node()),
        (
            "node under another name (hostPath)",
            yes(asked.says("renamed", "probe open /dev/renamed") == "/dev/renamed: ENXIO"),
        ),
        ("file, read-only", asked.mount()),
        ("a volume of the user's over that file", asked.volume()),
        ("variable", yes(asked.says("env", "echo $PROBE") == "cdi")),
        ("it goes before the user's", asked.variable_wins()),
        ("it is there in exec", asked.variable_in_exec()),
        ("createContainer hook", yes(asked.runs(1) == 1)),
        ("runs of it for a device named twice", asked.runs(2).to_string()),
        ("a failing hook stops the start", asked.failing_hook()),
        ("additionalGids (0.7.0)", asked.groups()),
        ("kind with a dot (0.6.0)", yes(asked.of_kind("with.dot").sh("echo $PROBE").stdout == "cdi\n")),
        ("devices of one kind in two files", asked.two_files()),
        ("a spec renamed into place is seen at once", asked.replaced()),
        ("newest cdiVersion", asked.newest_version()),
    ];
    table::compare(&suite(), engine.name, &cells);
}

fn yes(is_so: bool) -> String {
    if is_so { YES } else { NO }.to_owned()
}

/// Containers of one engine.
struct Asked<'a> {
    ground: &'a Ground,
    engine: &'a Engine,
}

impl<'a> Asked<'a> {
    fn container(&self, devices: &[&str]) -> Container<'a> {
        let container = self.engine.container(self.ground, &[]).image("glibc");
        devices.iter().fold(container, |container, device| {
            container.option(&format!("--device=example.com/probe={device}"))
        })
    }

    fn of_kind(&self, class: &str) -> Container<'a> {
        self.engine.container(self.ground, &[]).option(&format!("--device=example.com/{class}=one"))
    }

    fn says(&self, device: &str, script: &str) -> String {
        self.container(&[device]).sh(script).stdout.trim_end().to_owned()
    }

    fn version(&self) -> String {
        let (program, runtime) = match self.engine.name {
            name if name.starts_with("docker") => ("dockerd", "runc"),
            "rootless-crun" | "podman-crun" => ("podman", "crun"),
            "podman-runc" => ("podman", "runc"),
            _ => ("containerd", "runc"),
        };
        let number = |program: &str| {
            let output = self.ground.sh(&format!("{program} --version"));
            let words = output.stdout.split_whitespace();
            let number = words
                .map(|word| word.trim_start_matches('v'))
                .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
            let number = number.unwrap_or_default();
            number[..number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len())]
                .to_owned()
        };
        format!("{}, {runtime} {}", number(program), number(runtime))
    }

    fn read_only_node(&self) -> String {
        let answers = self.says("read", "probe read /dev/probe-node; probe open /dev/probe-node");
        yes(answers == "/dev/probe-node: ENXIO\n/dev/probe-node: EPERM")
    }

    fn mount(&self) -> String {
        let said = self.says("mount", "cat /srv/file; echo x >/srv/file || echo refused; sed -n '/ \\/srv\\/file ro,/p' /proc/self/mountinfo");
        yes(said.starts_with("mounted\nrefused\n") && said.contains("nosuid") && said.contains("nodev"))
    }

    fn volume(&self) -> String {
        let container = self.container(&["mount"]).option("--volume=/srv/probe/other:/srv/file");
        match container.sh("cat /srv/file").stdout.as_str() {
            "other\n" => "hides it",
            "mounted\n" => "is hidden by it",
            _ => "is refused",
        }
        .to_owned()
    }

    fn variable_wins(&self) -> String {
        yes(self.container(&["env"]).option("--env=PROBE=user").sh("echo $PROBE").stdout == "cdi\n")
    }

    fn variable_in_exec(&self) -> String {
        let [output] =
            self.container(&["env"]).exec(&format!("probe-exec-{}", self.engine.name), ["echo $PROBE"]);
        yes(output.stdout == "cdi\n")
    }

    /// How often the hook of a device runs that is named so many times.
    fn runs(&self, times: usize) -> usize {
        let trace = format!("/tmp/probe-{}", self.engine.name);
        self.ground.sh(&format!("rm -f {trace}")).ok();
        let device = format!("--device=example.com/hook-{}=one", self.engine.name);
        let container = (0..times).fold(self.container(&[]), |container, _| container.option(&device));
        container.sh("true").ok();
        self.ground.sh(&format!("cat {trace}")).stdout.lines().count()
    }

    fn failing_hook(&self) -> String {
        let output: Output = self.container(&["fails"]).sh("echo started");
        match (output.status != 0 && output.stdout.is_empty(), output.stderr.contains("the hook says why")) {
            (true, true) => "yes, and its message is shown".into(),
            (true, false) => "yes, without its message".into(),
            (false, _) => NO.into(),
        }
    }

    fn groups(&self) -> String {
        let groups = self.of_kind("groups").option("--user=1000").sh("id -G").stdout;
        yes(groups.split_whitespace().any(|group| group == "44"))
    }

    fn two_files(&self) -> String {
        yes(self.container(&["env", "second"]).sh("echo $PROBE $SECOND").stdout == "cdi cdi\n")
    }

    fn replaced(&self) -> String {
        let class = format!("replaced-{}", self.engine.name);
        let write = |value: &str| {
            let spec = format!(
                "{{\"cdiVersion\":\"0.5.0\",\"kind\":\"example.com/{class}\",\"devices\":[{{\"name\":\"one\",\"containerEdits\":{{\"env\":[\"PROBE={value}\"]}}}}]}}"
            );
            let path = format!("/etc/cdi/probe-{class}");
            self.ground.sh(&format!("echo '{spec}' >{path}.tmp && mv {path}.tmp {path}.json")).ok();
        };
        let seen = ["before", "after"].map(|value| {
            write(value);
            self.of_kind(&class).sh("echo $PROBE").stdout == format!("{value}\n")
        });
        yes(seen == [true, true])
    }

    fn newest_version(&self) -> String {
        let reads = |version: &&&str| {
            let class = format!("v{}", version.replace('.', ""));
            self.of_kind(&class).sh("echo $PROBE").stdout == "cdi\n"
        };
        let versions = ["0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
        versions.iter().take_while(reads).last().map_or(NO, |version| version).to_owned()
    }
}
