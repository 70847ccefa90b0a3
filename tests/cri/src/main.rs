//! `cri-run`: containers through the socket that a kubelet uses, by the words of docker and podman, as far as the tests
//! use them. Each container has a pod of its own, in the machine's network unless it has a user namespace.
//!
//! ```text
//! cri-run run [--rm] [OPTION...] IMAGE COMMAND...     its output, and its exit status
//! cri-run exec [OPTION...] IMAGE COMMAND...           the same, beside the container's own `sleep`
//! cri-run again [OPTION...] IMAGE COMMAND...          as run, and then the container is started once more
//! ```

mod messages;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use messages::*;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

const SOCKET: &str = "/run/ctrd/containerd.sock";
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(std::env::args().skip(1).collect())) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("cri-run: {error:#}");
    ExitCode::from(125)
}

async fn run(mut words: Vec<String>) -> Result<u8> {
    if words.is_empty() {
        bail!("usage: cri-run run|exec|again [OPTION...] IMAGE COMMAND...");
    }
    let verb = words.remove(0);
    let name = format!("run-{}", std::process::id());
    let directory = format!("/tmp/{name}");
    std::fs::create_dir(&directory)?;
    let (mut config, namespaces) = container(&name, words)?;
    let then = match verb.as_str() {
        "run" => Then::Nothing,
        "exec" => {
            Then::Exec(std::mem::replace(&mut config.command, ["sleep", "60"].map(str::to_owned).into()))
        }
        "again" => Then::Again,
        other => bail!("no such verb: {other}"),
    };
    let mut cri = Cri::connect().await?;
    let pod = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { uid: name.clone(), namespace: "default".into(), name }),
        log_directory: directory.clone(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) }),
        }),
    };
    let Id { id: sandbox } =
        cri.call("RunPodSandbox", RunPodSandboxRequest { config: Some(pod.clone()) }).await?;
    let status = in_pod(&mut cri, &sandbox, pod, config, then).await;
    // Whatever became of the container, the pod goes.
    let _: Nothing = cri.call("StopPodSandbox", Id { id: sandbox.clone() }).await?;
    let _: Nothing = cri.call("RemovePodSandbox", Id { id: sandbox }).await?;
    std::fs::remove_dir_all(directory)?;
    status
}

/// What becomes of a container besides its end.
enum Then {
    Nothing,
    /// Another program is run beside it.
    Exec(Vec<String>),
    /// It is started once more.
    Again,
}

/// Runs one container in a pod, prints its output, and gives its exit status.
async fn in_pod(
    cri: &mut Cri,
    sandbox: &str,
    pod: PodSandboxConfig,
    config: ContainerConfig,
    then: Then,
) -> Result<u8> {
    let log = format!("{}/{}", pod.log_directory, config.log_path);
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod),
    };
    let Id { id } = cri.call("CreateContainer", request).await?;
    let _: Nothing = cri.call("StartContainer", Id { id: id.clone() }).await?;
    if let Then::Exec(cmd) = then {
        let request = ExecSyncRequest { container_id: id, cmd, timeout: 60 };
        let done: ExecSyncResponse = cri.call("ExecSync", request).await?;
        std::io::stdout().write_all(&done.stdout)?;
        std::io::stderr().write_all(&done.stderr)?;
        return Ok(u8::try_from(done.exit_code).unwrap_or(255));
    }
    let deadline = Instant::now() + TIMEOUT;
    let code = loop {
        let ContainerStatusResponse { status } = cri.call("ContainerStatus", Id { id: id.clone() }).await?;
        match status {
            Some(status) if status.state == EXITED => break status.exit_code,
            _ if Instant::now() > deadline => bail!("the container has not ended in a minute"),
            _ => tokio::time::sleep(POLL).await,
        }
    };
    print_log(&std::fs::read_to_string(&log).with_context(|| log.clone())?)?;
    if let Then::Again = then {
        let _: Nothing = cri.call("StartContainer", Id { id }).await?;
    }
    Ok(u8::try_from(code).unwrap_or(255))
}

/// A line of a container's log is a time, the stream, `F` (or `P` where the line goes on in the next), and the text.
fn print_log(log: &str) -> Result<()> {
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ').skip(1);
        let (stream, tag, text) = (fields.next(), fields.next(), fields.next().unwrap_or_default());
        let end = if tag == Some("P") { "" } else { "\n" };
        match stream {
            Some("stderr") => write!(std::io::stderr(), "{text}{end}")?,
            _ => write!(std::io::stdout(), "{text}{end}")?,
        }
    }
    Ok(())
}

/// Options, image and command, as docker and podman take them: a container, and the namespaces of its pod.
fn container(name: &str, words: Vec<String>) -> Result<(ContainerConfig, NamespaceOption)> {
    let mut config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        log_path: "log".into(),
        ..ContainerConfig::default()
    };
    let mut security = LinuxContainerSecurityContext::default();
    let mut namespaces = NamespaceOption { network: NODE, userns_options: None };
    let mut capabilities = Vec::new();
    let mut words = words.into_iter();
    let image = loop {
        let word = words.next().context("no image")?;
        let Some(option) = word.strip_prefix("--") else { break word };
        match option.split_once('=').unwrap_or((option, "")) {
            ("device", device) => config.cdi_devices.push(CdiDevice { name: device.into() }),
            ("cap-add", capability) => capabilities.push(capability.to_owned()),
            ("env", variable) => {
                let (key, value) = variable.split_once('=').context("a variable without =")?;
                config.envs.push(KeyValue { key: key.into(), value: value.into() });
            }
            ("user", user) => security.run_as_user = Some(Int64Value { value: user.parse()? }),
            ("group-add", group) => security.supplemental_groups.push(group.parse()?),
            // The one mapping is of users and groups.
            ("uidmap", mapping) => namespaces = mapped(mapping)?,
            ("gidmap", _) => {}
            ("read-only", "") => security.readonly_rootfs = true,
            ("volume", volume) => {
                let (host_path, container_path) = volume.split_once(':').context("a volume without :")?;
                config
                    .mounts
                    .push(Mount { host_path: host_path.into(), container_path: container_path.into() });
            }
            ("rm", "") => {}
            _ => bail!("no such option: {word}"),
        }
    };
    security.capabilities = Some(Capability { add_capabilities: capabilities });
    security.namespace_options = Some(namespaces.clone());
    config.linux = Some(LinuxContainerConfig { security_context: Some(security) });
    config.image = Some(ImageSpec { image: format!("localhost/{image}:latest") });
    config.command = words.collect();
    Ok((config, namespaces))
}

/// A user namespace of the pod's. A network goes with it, since the machine's is not the pod's to mount as /sys.
fn mapped(mapping: &str) -> Result<NamespaceOption> {
    let numbers = mapping.split(':').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let [container_id, host_id, length] = numbers[..] else { bail!("not a mapping: {mapping}") };
    let mapping = vec![IdMapping { host_id, container_id, length }];
    Ok(NamespaceOption {
        network: POD,
        userns_options: Some(UserNamespace { mode: POD, uids: mapping.clone(), gids: mapping }),
    })
}

/// A connection to the runtime service.
struct Cri(Grpc<Channel>);

impl Cri {
    async fn connect() -> Result<Self> {
        // The address is not used: the connector knows its socket.
        let endpoint = Endpoint::from_static("http://localhost");
        let connect =
            tower::service_fn(|_: Uri| async { UnixStream::connect(SOCKET).await.map(TokioIo::new) });
        let channel = endpoint.connect_with_connector(connect).await.context(SOCKET)?;
        Ok(Self(Grpc::new(channel)))
    }

    async fn call<Request, Response>(&mut self, method: &str, request: Request) -> Result<Response>
    where
        Request: prost::Message + Send + Sync + 'static,
        Response: prost::Message + Default + Send + Sync + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
        self.0.ready().await?;
        let codec = ProstCodec::<Request, Response>::default();
        match self.0.unary(tonic::Request::new(request), path, codec).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => bail!("{method}: {}", status.message()),
        }
    }
}
