//! `demo`: the whole of KubeXen on this machine, from nothing to running guests, for somebody who wants to see it.

pub mod command;
mod report;

use crate::{
    control_plane::{ControlPlane, Options},
    lab::{Lab, LabOptions},
    pool::{self, Pool, PoolOptions, Profile},
    programs::repository,
    progress::Step,
};
use anyhow::{Context, Result, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, ResourceExt, api::PostParams};
use kubexen_crds::{
    ByteQuantity, Kernel, VirtualMachine, VirtualMachineSpec, condition,
    virtual_machine::{Cpu, Lifecycle, Memory, Placement, PowerState},
};
use std::{path::PathBuf, time::Duration};
use tokio::time::Instant;

/// Time for a simulated pool to start its guests, and more for each of them.
const SIMULATED_LIMIT: Duration = Duration::from_secs(60);
/// Time for emulated Xen hosts to start theirs: everything there takes many times as long as on a real machine.
const XEN_LIMIT: Duration = Duration::from_secs(300);
const LIMIT_PER_MACHINE: Duration = Duration::from_millis(200);

/// What the demo shows.
#[derive(Clone, Copy, Debug)]
struct Show {
    xen: bool,
    hosts: usize,
    machines: usize,
}

/// A demo that is up. Dropping it stops everything it started.
#[derive(Debug)]
struct Demo {
    // In the order in which they are stopped.
    pool: Pool,
    lab: Option<Lab>,
    control_plane: ControlPlane,
}

impl Demo {
    async fn start(show: Show) -> Result<Self> {
        let step = Step::begin("Starting etcd, the pool's etcd, kube-apiserver and kube-controller-manager");
        let control_plane = ControlPlane::start(&Options::default()).await?;
        step.done();
        let (pool, lab) = if show.xen {
            let step = Step::begin(format!("Booting {} Xen hosts in QEMU", show.hosts));
            let mut options = LabOptions::new(format!("demo-{}", std::process::id()));
            options.hosts = show.hosts;
            options.extras = pool::lab_extras()?;
            let lab = Lab::up(&options).await?;
            step.done();
            let step = Step::begin(
                "Installing the chart with Helm, starting the controller here and an agent in each dom0",
            );
            let pool = Pool::start_on_lab(&control_plane, &lab, Profile::Debug).await?;
            step.done();
            (pool, Some(lab))
        } else {
            let what = format!(
                "Installing the chart with Helm, starting the controller and {} simulated hosts",
                show.hosts
            );
            let step = Step::begin(what);
            let options = PoolOptions { hosts: show.hosts, ..PoolOptions::default() };
            let pool = Pool::start(&control_plane, options).await?;
            step.done();
            (pool, None)
        };
        Ok(Self { pool, lab, control_plane })
    }

    /// Applies the examples and what was asked for besides, and waits until every machine is Ready.
    async fn show(&self, show: Show) -> Result<()> {
        let examples = repository().join("docs/examples");
        println!("$ kubectl apply -f docs/examples");
        report::kubectl(&self.control_plane, &["apply", "-f", &examples.to_string_lossy()]).await?;
        let client = self.control_plane.client().await?;
        add_machines(&client, show.machines).await?;
        let per_machine = LIMIT_PER_MACHINE * u32::try_from(show.machines).unwrap_or(u32::MAX);
        let limit = per_machine + if show.xen { XEN_LIMIT } else { SIMULATED_LIMIT };
        wait_until_ready(&client, limit).await.with_context(|| self.where_to_look())?;
        for arguments in [["get", "xhost"].as_slice(), &["get", "xvm,xvd", "--all-namespaces"]] {
            println!("\n$ kubectl {}", arguments.join(" "));
            report::kubectl(&self.control_plane, arguments).await?;
        }
        if let Some(lab) = &self.lab {
            report::guests(&client, lab).await?;
        }
        Ok(())
    }

    fn where_to_look(&self) -> String {
        format!(
            "The logs are in {} while this runs; set {}=1 to keep them afterwards",
            self.pool.folder().display(),
            crate::scratch::KEEP
        )
    }

    fn explain(&self) {
        println!("\nThe pool is up. Use it from another terminal:\n");
        println!("  export KUBECONFIG={}", self.control_plane.kubeconfig().display());
        println!("  export PATH=\"{}:$PATH\"", tools_folder().display());
        println!("  kubectl get xen -A");
        println!("  kubectl describe xvm web-1");
        println!("  kubectl patch xvm web-1 --type merge -p '{{\"spec\":{{\"powerState\":\"Halted\"}}}}'");
        println!("  kubectl explain xvm.spec\n");
        println!("Logs: {}", self.pool.folder().display());
    }
}

fn tools_folder() -> PathBuf {
    crate::programs::tool("kubectl")
        .ok()
        .and_then(|path| path.parent().map(PathBuf::from))
        .unwrap_or_default()
}

/// Adds machines without disks, `demo-1` and so on.
async fn add_machines(client: &Client, count: usize) -> Result<()> {
    let machines: Api<VirtualMachine> = Api::namespaced(client.clone(), "default");
    for number in 1..=count {
        let name = format!("demo-{number}");
        let machine = VirtualMachine {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            spec: small_machine(),
            status: None,
        };
        machines
            .create(&PostParams::default(), &machine)
            .await
            .with_context(|| format!("cannot make {name}"))?;
    }
    Ok(())
}

fn small_machine() -> VirtualMachineSpec {
    VirtualMachineSpec {
        power_state: PowerState::Running,
        cpu: Cpu::default(),
        memory: Memory { size: ByteQuantity("128Mi".to_owned()), min: None, max: None },
        boot: kubexen_crds::Boot {
            type_: kubexen_crds::BootType::Pvh,
            firmware: None,
            kernel: Some(Kernel { name: "linux".to_owned(), command_line: "console=hvc0".to_owned() }),
        },
        disks: Vec::new(),
        interfaces: Vec::new(),
        placement: Placement::default(),
        lifecycle: Lifecycle::default(),
        cloud_init: None,
        availability: kubexen_crds::Availability::default(),
        cds: Vec::new(),
    }
}

async fn wait_until_ready(client: &Client, limit: Duration) -> Result<()> {
    let machines: Api<VirtualMachine> = Api::all(client.clone());
    let began = Instant::now();
    let mut last = String::new();
    loop {
        let all = machines.list(&Default::default()).await?.items;
        let waiting: Vec<&VirtualMachine> = all.iter().filter(|machine| !is_ready(machine)).collect();
        let line = format!("{} of {} virtual machines are Ready", all.len() - waiting.len(), all.len());
        if line != last {
            eprintln!("{line} after {:.1} s", began.elapsed().as_secs_f64());
            last = line;
        }
        let Some(first) = waiting.first() else { return Ok(()) };
        if began.elapsed() > limit {
            let status = first.status.clone().unwrap_or_default();
            let why = condition::find(&status.conditions, "Ready").map_or_else(
                || "it has no status".to_owned(),
                |ready| format!("{}: {}", ready.reason, ready.message),
            );
            bail!("{} is not Ready after {} s: {why}", first.name_any(), limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_ready(machine: &VirtualMachine) -> bool {
    machine.status.as_ref().is_some_and(|status| {
        status.observed_generation == machine.metadata.generation
            && condition::is_true(&status.conditions, "Ready")
    })
}
