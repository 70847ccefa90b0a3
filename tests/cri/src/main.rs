//! `cri-run`: containers through the socket that a kubelet uses, by the words of docker and podman, as far as the tests
//! use them. Each container has a pod of its own, in the machine's network unless it has a user namespace.
//!
//! ```text
//! cri-run run [--rm] [OPTION...] IMAGE COMMAND...            its output, and its exit status
//! cri-run create --name NAME [OPTION...] IMAGE COMMAND...    the pod too
//! cri-run start [--attach] NAME      cri-run exec NAME COMMAND...
//! cri-run stop NAME                  cri-run rm NAME         the pod too, whatever the container does
//! ```

mod messages;

use std::io::Write;
use std::path::{Path, PathBuf};
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

async fn run(words: Vec<String>) -> Result<u8> {
    let Some((verb, words)) = words.split_first() else {
        bail!("usage: cri-run run|create|start|exec|stop|rm [OPTION...] ...")
    };
    let mut cri = Cri::connect().await?;
    // What is said of a container that exists: its name is the first word that is no option.
    let at = words.iter().position(|word| !word.starts_with("--")).unwrap_or(words.len());
    let named = || words.get(at).map(|name| Pod::named(name)).context("no name");
    match verb.as_str() {
        "run" => {
            let pod = Pod::named(&format!("run-{}", std::process::id()));
            let status = match pod.create(&mut cri, words.to_vec()).await {
                Ok(()) => pod.attach(&mut cri).await,
                Err(error) => Err(error),
            };
            pod.remove(&mut cri).await?;
            return status;
        }
        "create" => {
            let [option, name, words @ ..] = words else { bail!("no name") };
            if option != "--name" {
                bail!("the first option of create is --name NAME");
            }
            Pod::named(name).create(&mut cri, words.to_vec()).await?;
        }
        "start" if at > 0 => return named()?.attach(&mut cri).await,
        "start" => named()?.start(&mut cri).await?,
        "exec" => return named()?.exec(&mut cri, words[at + 1..].to_vec()).await,
        "stop" => named()?.stop(&mut cri).await?,
        "rm" => named()?.remove(&mut cri).await?,
        other => bail!("no such verb: {other}"),
    }
    Ok(0)
}

/// A pod with one container.
struct Pod {
    name: String,
    /// Its logs, and what the CRI calls it.
    directory: PathBuf,
}

impl Pod {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), directory: Path::new("/tmp").join(format!("cri-{name}")) }
    }

    fn id(&self, of: &str) -> Result<String> {
        let path = self.directory.join(of);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    async fn create(&self, cri: &mut Cri, words: Vec<String>) -> Result<()> {
        std::fs::create_dir(&self.directory)?;
        let (config, security_context) = container(&self.name, words)?;
        let pod = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: self.name.clone(),
                namespace: "default".into(),
                name: self.name.clone(),
            }),
            log_directory: self.directory.display().to_string(),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(security_context) }),
        };
        let Id { id: sandbox } =
            cri.call("RunPodSandbox", RunPodSandboxRequest { config: Some(pod.clone()) }).await?;
        std::fs::write(self.directory.join("sandbox"), &sandbox)?;
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox,
            config: Some(config),
            sandbox_config: Some(pod),
        };
        let Id { id } = cri.call("CreateContainer", request).await?;
        std::fs::write(self.directory.join("container"), id)?;
        Ok(())
    }

    async fn start(&self, cri: &mut Cri) -> Result<()> {
        let _: Nothing = cri.call("StartContainer", Id { id: self.id("container")? }).await?;
        Ok(())
    }

    /// Starts it, waits for its end, prints its output, and gives its exit status.
    async fn attach(&self, cri: &mut Cri) -> Result<u8> {
        self.start(cri).await?;
        let deadline = Instant::now() + TIMEOUT;
        let code = loop {
            let id = self.id("container")?;
            let ContainerStatusResponse { status } = cri.call("ContainerStatus", Id { id }).await?;
            match status {
                Some(status) if status.state == EXITED => break status.exit_code,
                _ if Instant::now() > deadline => bail!("the container has not ended in a minute"),
                _ => tokio::time::sleep(POLL).await,
            }
        };
        print_log(&self.id("log")?)?;
        Ok(u8::try_from(code).unwrap_or(255))
    }

    async fn exec(&self, cri: &mut Cri, cmd: Vec<String>) -> Result<u8> {
        let request = ExecSyncRequest { container_id: self.id("container")?, cmd, timeout: 60 };
        let done: ExecSyncResponse = cri.call("ExecSync", request).await?;
        std::io::stdout().write_all(&done.stdout)?;
        std::io::stderr().write_all(&done.stderr)?;
        Ok(u8::try_from(done.exit_code).unwrap_or(255))
    }

    /// Kills the container, and leaves the pod.
    async fn stop(&self, cri: &mut Cri) -> Result<()> {
        let request = StopContainerRequest { container_id: self.id("container")?, timeout: 0 };
        let _: Nothing = cri.call("StopContainer", request).await?;
        Ok(())
    }

    async fn remove(&self, cri: &mut Cri) -> Result<()> {
        if let Ok(id) = self.id("sandbox") {
            let _: Nothing = cri.call("StopPodSandbox", Id { id: id.clone() }).await?;
            let _: Nothing = cri.call("RemovePodSandbox", Id { id }).await?;
        }
        std::fs::remove_dir_all(&self.directory)?;
        Ok(())
    }
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

/// Options, image and command, as docker and podman take them: a container, and the security of its pod.
fn container(name: &str, words: Vec<String>) -> Result<(ContainerConfig, LinuxSandboxSecurityContext)> {
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
            ("privileged", "") => security.privileged = true,
            ("rm", "") => {}
            _ => bail!("no such option: {word}"),
        }
    };
    security.capabilities = Some(Capability { add_capabilities: capabilities });
    let of_pod = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces.clone()),
        privileged: security.privileged,
    };
    security.namespace_options = Some(namespaces);
    config.linux = Some(LinuxContainerConfig { security_context: Some(security) });
    config.image = Some(ImageSpec { image: format!("localhost/{image}:latest") });
    config.command = words.collect();
    Ok((config, of_pod))
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
