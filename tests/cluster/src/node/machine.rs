//! The node's own network, mounts and processes.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use crate::Error;
use crate::component::Component;
use crate::control_plane::SERVICE_IP;
use crate::keeper::Keeper;
use crate::wait::{LIMIT, Look, until};

/// Namespaces that end with their first process, and a wire from the host into them.
#[derive(Debug)]
pub(crate) struct Machine {
    first: Component,
    wire: u8,
}

impl Machine {
    pub(crate) fn new(folder: &Path, keeper: &Keeper) -> Result<Self, Error> {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args(["bash", "-c", include_str!("machine.sh"), "machine"])
            .arg(folder)
            .arg(SERVICE_IP.to_string());
        let mut first = Component::start("machine", command, folder, keeper)?;
        let up = folder.join("up");
        until(
            "the node's namespaces",
            LIMIT,
            || {
                first.running()?;
                Ok(if up.exists() { Look::Done(()) } else { Look::NotYet("nothing".to_owned()) })
            },
            String::new,
        )?;
        let wire = lay_wire(first.id())?;
        let machine = Self { first, wire };
        let [host, node] = [machine.host_ip(), machine.ip()].map(|ip| format!("{ip}/30"));
        let outside = machine.wire_name();
        run(Command::new("ip").args(["address", "add", &host, "dev", &outside]))?;
        run(Command::new("ip").args(["link", "set", &outside, "up"]))?;
        run(machine.enter("ip").args(["address", "add", &node, "dev", "eth0"]))?;
        run(machine.enter("ip").args(["link", "set", "eth0", "up"]))?;
        let (host, node) = (machine.host_ip().to_string(), machine.ip().to_string());
        run(machine.enter("ip").args(["route", "add", "default", "via", &host]))?;
        run(Command::new("ip").args(["route", "add", &machine.pod_net(), "via", &node]))?;
        Ok(machine)
    }

    fn wire_name(&self) -> String {
        wire_name(self.wire)
    }

    /// Where Pods find what listens on the host.
    pub(crate) fn host_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 97, self.wire, 1)
    }

    /// The node's own address.
    pub(crate) fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 97, self.wire, 2)
    }

    /// The addresses of Pods.
    pub(crate) fn pod_net(&self) -> String {
        format!("10.97.{}.64/26", self.wire)
    }

    pub(crate) fn check(&mut self) -> Result<(), Error> {
        self.first.running()
    }

    /// A program to be started in the node.
    pub(crate) fn enter(&self, program: impl AsRef<OsStr>) -> Command {
        enter(self.first.id(), program.as_ref())
    }

    /// The same for who has only [`Machine::id`].
    pub(crate) fn id(&self) -> u32 {
        self.first.id()
    }

    /// Listens on an address of the node, to be served by this process.
    pub(crate) fn listen(&self, at: SocketAddr) -> Result<TcpListener, Error> {
        let path = format!("/proc/{}/ns/net", self.first.id());
        // a thread may be in another network than its process, and a socket stays where it was made
        std::thread::spawn(move || {
            let network = std::fs::File::open(path)?;
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
            TcpListener::bind(at)
        })
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
        .map_err(|source| Error::Machine { what: "an address of the node", source })
    }
}

/// A program to be started where the first process `id` is.
pub(crate) fn enter(id: u32, program: &OsStr) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &id.to_string(), "--mount", "--net"])
        // `unshare` itself is in no process namespace but its parent's
        .arg(format!("--pid=/proc/{id}/ns/pid_for_children"))
        .arg("--")
        .arg(program);
    command
}

fn wire_name(wire: u8) -> String {
    format!("ossvp-node{wire}")
}

/// Connects the host with the network of a process by the first pair of interfaces that is free;
/// its number is that of the addresses too, so that several nodes may be on one host.
fn lay_wire(process: u32) -> Result<u8, Error> {
    let mut wire = 0;
    loop {
        let name = wire_name(wire);
        let laid = run(Command::new("ip")
            .args(["link", "add", &name, "type", "veth", "peer", "name", "eth0"])
            .args(["netns", &process.to_string()]));
        match laid {
            Ok(_) => return Ok(wire),
            Err(Error::Failed { output, .. }) if output.contains("exists") && wire < u8::MAX => {
                wire += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let text = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    };
    let name = text();
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| Error::Start { name: name.clone(), source })?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let output_text = said + &String::from_utf8_lossy(&output.stderr);
    Err(Error::Failed { command: name, status: output.status, output: output_text })
}
