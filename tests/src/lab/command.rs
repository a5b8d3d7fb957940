//! `lab up|down|list|power|exec|logs`: the lab for people.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::control::quoted;
use super::host::{LabHost, read_from};
use super::hub::Hub;
use super::image::Extra;
use super::pool::{Lab, LabOptions, default_root};
use super::state::{self, Lifetime};

/// Real Xen hosts on this machine, emulated in software.
#[derive(Debug, Args)]
pub struct LabCommand {
    /// Which lab; several run side by side.
    #[arg(long, global = true, default_value = "default")]
    name: String,
    /// Folder of the labs and their cache [default: target/lab of this workspace].
    #[arg(long, global = true)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build what has changed and boot the hosts; they stay up until `lab down`.
    Up(UpArgs),
    /// Switch the hosts off and remove their disks and logs.
    Down {
        /// All labs.
        #[arg(long)]
        all: bool,
    },
    /// List the labs and their hosts.
    List,
    /// Switch a host on again, or cut its power.
    Power {
        /// The host, such as xen-1.
        host: String,
        /// What to do.
        switch: Switch,
    },
    /// Run a command in the dom0 of a host.
    Exec(ExecArgs),
    /// Print the console of a host.
    Logs {
        /// The host, such as xen-1.
        host: String,
        /// Go on printing what comes.
        #[arg(short, long)]
        follow: bool,
        /// Print the node agent's output instead.
        #[arg(long)]
        agent: bool,
    },
    /// Join the hosts of a lab of more than two: started by `up`.
    #[command(hide = true)]
    Hub {
        #[arg(long)]
        hosts: usize,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
struct UpArgs {
    /// How many hosts.
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    /// Memory of each host in MiB, 768 of them dom0's.
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// A file of this machine that each dom0 gets, as SOURCE:/DESTINATION; a program brings its libraries along.
    #[arg(long = "file", value_name = "SOURCE:/DESTINATION")]
    files: Vec<Extra>,
}

#[derive(Debug, Args)]
struct ExecArgs {
    /// The host, such as xen-1.
    host: String,
    /// Kill the command after this many seconds.
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Hand standard input to the command, all of it before the command's output comes.
    #[arg(short, long)]
    input: bool,
    /// The command and its arguments; one argument alone is shell text.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl LabCommand {
    /// Does what was asked for. Ctrl-C ends it and, if it was `up`, whatever was started.
    ///
    /// # Errors
    /// What went wrong and what to do about it.
    pub async fn run(self) -> Result<ExitCode> {
        let root = self.root.clone().unwrap_or_else(default_root);
        let work = self.verb.run(root, self.name);
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            outcome = work => outcome,
        }
    }
}

impl Verb {
    async fn run(self, root: PathBuf, name: String) -> Result<ExitCode> {
        match self {
            Self::Up(args) => up(args, root, name).await?,
            Self::Down { all: false } => Lab::open(&root, &name)?.down().await?,
            Self::Down { all: true } => {
                for (folder, _) in state::all(&root)? {
                    let name = folder.file_name().unwrap_or_default().to_string_lossy();
                    Lab::open(&root, &name)?.down().await?;
                    println!("{name}: down");
                }
            }
            Self::List => list(&root)?,
            Self::Power { host, switch } => {
                let host = Lab::open(&root, &name)?.host(&host)?;
                match switch {
                    Switch::On => host.power_on().await?,
                    Switch::Off => host.power_off().await?,
                }
            }
            Self::Exec(args) => return exec(args, &Lab::open(&root, &name)?).await,
            Self::Logs { host, follow, agent } => {
                let host = Lab::open(&root, &name)?.host(&host)?;
                logs(&host, follow, agent).await?;
            }
            Self::Hub { hosts } => {
                let _hub = Hub::start(&root.join(&name), hosts, None)?;
                futures::future::pending::<()>().await;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn up(args: UpArgs, root: PathBuf, name: String) -> Result<()> {
    let options = LabOptions {
        root,
        hosts: args.hosts,
        lifetime: Lifetime::Detached,
        memory_mib: args.memory,
        extras: args.files,
        ..LabOptions::new(&name)
    };
    let lab = Lab::up(&options).await?;
    let first = lab.hosts().first().map(LabHost::name).unwrap_or_default();
    let named = if name == "default" { String::new() } else { format!(" --name {name}") };
    println!("The lab is up: {} hosts. Try:", lab.hosts().len());
    println!("  cargo xtask lab exec{named} {first} -- xl info");
    println!("  cargo xtask lab logs{named} {first} -f");
    println!("  cargo xtask lab down{named}");
    Ok(())
}

fn list(root: &std::path::Path) -> Result<()> {
    for (folder, _) in state::all(root)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        for host in Lab::open(root, &name)?.hosts() {
            println!("{name}\t{}\t{}", host.name(), if host.is_on() { "on" } else { "off" });
        }
    }
    Ok(())
}

async fn exec(args: ExecArgs, lab: &Lab) -> Result<ExitCode> {
    let mut input = Vec::new();
    if args.input {
        std::io::stdin().read_to_end(&mut input).context("cannot read standard input")?;
    }
    let command = match &args.command[..] {
        [text] => text.clone(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    };
    let limit = Duration::from_secs(args.limit);
    let output = lab.host(&args.host)?.exec_with_input(&command, &input, limit).await?;
    std::io::stdout().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    Ok(ExitCode::from(output.code))
}

async fn logs(host: &LabHost, follow: bool, agent: bool) -> Result<()> {
    let path = if agent { host.agent_log() } else { host.console_log() };
    let mut position = 0;
    loop {
        let bytes = read_from(&path, position).with_context(|| format!("cannot read {}", path.display()))?;
        position += u64::try_from(bytes.len())?;
        let mut output = std::io::stdout();
        output.write_all(&bytes)?;
        output.flush()?;
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
