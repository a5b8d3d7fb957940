//! The conformance suite against the Xen of this machine, as a subcommand that is run inside dom0.

use super::{XenHypervisor, XenOptions, device_model, watchdog::XenWatchdog};
use crate::{
    fence::Watchdog,
    hypervisor::{
        KernelImage,
        conformance::{Bench, Case, Finding, Guests, Outcome, basic_cases, cases},
    },
};
use anyhow::{Context, ensure};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

/// What the suite's guests are made of on this machine.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Run only cases whose name contains this.
    #[arg(default_value = "")]
    filter: String,
    /// Leave out the cases that suspend, change or question a running guest, which take a minute each on an emulated machine.
    #[arg(long)]
    basic: bool,
    /// How many machines share the suite; each case runs on one of them.
    #[arg(long, default_value_t = 1)]
    parts: usize,
    /// Which of them this one is, from 0 on.
    #[arg(long, default_value_t = 0)]
    part: usize,
    /// Folder for state; consoles are kept below it.
    #[arg(long, default_value = "/run/kubexen-conformance")]
    state: PathBuf,
    /// Kernel of the test guests, which must understand the suite's words on its command line.
    #[arg(long, default_value = "/guest/vmlinux")]
    kernel: PathBuf,
    /// Initial RAM disk of the test guests.
    #[arg(long, default_value = "/guest/initrd")]
    ramdisk: PathBuf,
    /// Kernel of HVM guests; without it they are not tried.
    #[arg(long)]
    hvm_kernel: Option<PathBuf>,
    /// Command line of PVH and PV guests.
    #[arg(long, default_value = "console=hvc0 quiet")]
    command_line: String,
    /// Command line of HVM guests.
    #[arg(long, default_value = "console=ttyS0 earlyprintk=serial")]
    hvm_command_line: String,
    /// Memory of each guest, in MiB.
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// Block device to give to guests. Its content is lost.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Folder with room for the memory of a guest that is suspended.
    #[arg(long, default_value = "/var/tmp/kubexen-conformance")]
    folder: PathBuf,
    /// Bridge to plug guests into.
    #[arg(long)]
    bridge: Option<String>,
    /// Do not try PV guests.
    #[arg(long)]
    no_pv: bool,
    /// Device model of HVM guests, if not libxl's default.
    #[arg(long)]
    device_model: Option<PathBuf>,
    /// Seconds that a condition may take to come true.
    #[arg(long, default_value_t = 180)]
    patience: u64,
}

/// Runs the suite and prints what it finds as libtest does. Exit code 1 means that something does not hold, 2 that
/// the suite could not run.
#[must_use]
pub fn main(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut options = XenOptions::new(arguments.state.clone())?;
        options.build.device_model.clone_from(&arguments.device_model);
        options.build.device_model_user = device_model::user(Path::new(device_model::USERS));
        let xen = Arc::new(XenHypervisor::start(options)?);
        let bench = Bench::new(xen, guests(arguments), Duration::from_secs(arguments.patience));
        let chosen = chosen(arguments);
        let with_watchdog = WATCHDOG.contains(&arguments.filter) && arguments.part == 0;
        println!("\nrunning {} tests", chosen.len() + usize::from(with_watchdog));
        let mut findings = bench.run_all(chosen, tell).await;
        if with_watchdog {
            let began = Instant::now();
            let outcome = match watchdog(&arguments.state) {
                Ok(()) => Outcome::Passed,
                Err(error) => Outcome::Failed(format!("{error:#}")),
            };
            let finding = Finding { name: WATCHDOG, outcome, took: began.elapsed() };
            tell(&finding);
            findings.push(finding);
        }
        Ok(summary(&findings))
    })
}

fn chosen(arguments: &Arguments) -> Vec<&'static Case> {
    let all: Vec<_> = if arguments.basic { basic_cases().collect() } else { cases().collect() };
    let named = all.into_iter().filter(|case| case.name.contains(&arguments.filter)).enumerate();
    named
        .filter(|(number, _)| number % arguments.parts.max(1) == arguments.part)
        .map(|(_, case)| case)
        .collect()
}

/// Only Xen has a watchdog that outlives its agent without being told to, so this is no case of every hypervisor.
const WATCHDOG: &str = "a_watchdog_outlives_its_agent_and_nothing_of_it_is_left_running";

/// Needs a host on which no guest is protected. What runs out meanwhile resets it.
fn watchdog(state: &Path) -> anyhow::Result<()> {
    let (long, short) = (Duration::from_secs(120), Duration::from_secs(60));
    let within = |time: Duration| tokio::time::Instant::now() + time;
    let file = |name: &str| state.join(format!("{name}.json"));
    let agent = |name: &str| XenWatchdog::start_with(file(name));
    let number = |name: &str| -> anyhow::Result<Option<u64>> {
        let text = std::fs::read(file(name)).context("its number is not written down")?;
        Ok(serde_json::from_slice::<serde_json::Value>(&text)?["timer"].as_u64())
    };
    let one = agent("one")?;
    one.check()?;
    one.set(within(long))?;
    let taken = number("one")?;
    drop(one);
    let one = agent("one")?;
    one.check().context("the next agent's")?;
    one.set(within(short))?;
    ensure!(taken.is_some() && number("one")? == taken, "the next agent took another: {:?}", number("one")?);
    let two = agent("two")?;
    two.set(within(long))?;
    let refused = agent("three")?.check().err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(refused.contains("both timers"), "with both taken, it says {refused:?}");
    two.disarm()?;
    drop(one);
    // As if it had ended before it knew the number.
    let record = std::fs::read_to_string(file("one"))?;
    let number = format!("\"timer\":{}", taken.unwrap_or_default());
    ensure!(record.contains(&number), "the record is {record}");
    std::fs::write(file("one"), record.replace(&number, "\"timer\":null"))?;
    let three = [agent("one")?, agent("two")?, agent("three")?];
    three[0].disarm()?;
    three[1].set(within(long))?;
    three[2].set(within(long)).context("the one that was left runs still")?;
    three.iter().try_for_each(Watchdog::disarm)?;
    ensure!(!["one", "two", "three"].iter().any(|name| file(name).exists()), "a record is left");
    Ok(())
}

fn guests(arguments: &Arguments) -> Guests {
    let image = |kernel: &PathBuf, command_line: &str| KernelImage {
        kernel: kernel.clone(),
        ramdisk: Some(arguments.ramdisk.clone()),
        command_line: command_line.to_owned(),
    };
    Guests {
        kernel: image(&arguments.kernel, &arguments.command_line),
        hvm_kernel: arguments.hvm_kernel.as_ref().map(|kernel| image(kernel, &arguments.hvm_command_line)),
        pv: !arguments.no_pv,
        memory_kib: arguments.memory * 1024,
        disk: arguments.disk.clone(),
        bridge: arguments.bridge.clone(),
        folder: arguments.folder.clone(),
        checks_kernel_file: true,
    }
}

fn tell(Finding { name, outcome, took }: &Finding) {
    let seconds = took.as_secs_f32();
    match outcome {
        Outcome::Passed => println!("test conformance::{name} ... ok <{seconds:.1}s>"),
        Outcome::Skipped(reason) => println!("test conformance::{name} ... ignored, {reason}"),
        Outcome::Failed(reason) => {
            println!("test conformance::{name} ... FAILED <{seconds:.1}s>\n    {reason}")
        }
    }
}

/// Prints the totals and tells whether all is well.
fn summary(findings: &[Finding]) -> bool {
    let count =
        |wanted: fn(&Outcome) -> bool| findings.iter().filter(|finding| wanted(&finding.outcome)).count();
    let passed = count(|outcome| *outcome == Outcome::Passed);
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let ignored = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored");
    failed == 0
}
