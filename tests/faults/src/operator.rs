//! The real operator, as a process.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context;

/// Nothing is run of it: the pods are kwok's.
const SERVER_IMAGE: &str = "--server-image=ortolan-server:any";

/// How operators are started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The binary.
    pub path: PathBuf,
    /// Where kubeconfigs and logs go.
    pub folder: PathBuf,
}

impl Program {
    /// Starts `ortolan run` against the proxy at `address`, which lists everything anew after `relist` seconds. Its log
    /// goes to `NAME.log` in the folder.
    pub fn start(&self, name: &str, address: SocketAddr, relist: u32) -> anyhow::Result<Child> {
        let kubeconfig = self.folder.join(format!("{name}.{}.kubeconfig", address.port()));
        std::fs::write(&kubeconfig, kubeconfig_of(address)).context("cannot write a kubeconfig")?;
        let log = File::options().create(true).append(true).open(self.log(name)).context("cannot write a log")?;
        Command::new(&self.path)
            .args(["run", "--operations-address=127.0.0.1:0", "--log-format=text", "--log=info,ortolan=debug"])
            .args(["--leader-elect=false", &format!("--relist={relist}s"), SERVER_IMAGE])
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))
    }

    /// Where the log of the operators of this name is.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// The warnings and errors in that log.
    pub fn warnings(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let warns = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        text.lines().filter(warns).map(str::to_owned).collect()
    }

    /// The last lines of that log.
    pub fn last_words(&self, name: &str) -> String {
        let text = std::fs::read_to_string(Path::new(&self.log(name))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn kubeconfig_of(address: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: proxy\n\
         clusters: [{{name: proxy, cluster: {{server: \"http://{address}\"}}}}]\n\
         users: [{{name: nobody, user: {{}}}}]\n\
         contexts: [{{name: proxy, context: {{cluster: proxy, user: nobody}}}}]\n"
    )
}
