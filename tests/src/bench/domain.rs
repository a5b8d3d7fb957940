//! `bench domain`: a domain's start through the agent against the same start by bare libxl, on a Xen host of the lab.
//!
//! Both are measured where they begin: the agent's from the create of the Domain object until its status says Running, as
//! a client of the API server sees it; libxl's inside dom0, from the request to build until the domain was let run, by
//! a worker that is spoken to directly. The two take turns, so that a machine that is busy with other things slows both.

use super::report::{DomainReport, median, rounded};
use crate::{
    control_plane::{ControlPlane, Options},
    lab::{Lab, LabHost, LabOptions},
    pool::{self, Pool, Profile},
    progress::Step,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    runtime::wait::await_condition,
};
use kubexen_crds::{
    Domain,
    domain::DomainPhase,
    names::{AGENT_FINALIZER, host_namespace},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// Starts of each kind that count; the median is the result.
const ROUNDS: usize = 7;
/// Starts of each kind before those, which fill caches.
const WARM_UP: usize = 1;
/// Longest time that one start may take where a host is emulated.
const LIMIT: Duration = Duration::from_secs(180);
const MEMORY_MIB: u32 = 128;
const COMMAND_LINE: &str = "console=hvc0 quiet";

/// Speaks to a libxl worker: builds a domain, lets it run, prints both moments of dom0's clock, and takes the domain apart.
const BARE: &str = r#"
cd "$(mktemp -d)" && mkfifo in out || exit 1
kubexen-node-agent libxl-worker <in >out 2>log &
exec 3>in 4<out
ask() { echo "$1" >&3; read -r reply <&4 || { cat log >&2; exit 1; }; }
ask '{"id":0,"request":"Version"}'
read -r begin _ </proc/uptime
ask "{\"id\":1,\"request\":{\"Create\":$CONFIG}}"
domid=${reply##*:}; domid=${domid%%\}*}
target="{\"domid\":$domid,\"uuid\":\"$DOMAIN\"}"
ask "{\"id\":2,\"request\":{\"Unpause\":$target}}"
read -r end _ </proc/uptime
case $reply in *Done*) ;; *) echo "$reply" >&2; cat log >&2; exit 1 ;; esac
echo "$begin $end"
ask "{\"id\":3,\"request\":{\"Destroy\":$target}}"
exec 3>&-
wait
"#;

/// Measures starts of a domain.
///
/// # Errors
/// When the lab does not start, or a domain does not run in time.
pub async fn run() -> Result<DomainReport> {
    let step = Step::begin("Starting the control plane, and a Xen host in QEMU");
    let control_plane = ControlPlane::start(&Options::default()).await?;
    let mut options = LabOptions::new(format!("bench-{}", std::process::id()));
    options.hosts = 1;
    options.extras = pool::lab_extras()?;
    let lab = Lab::up(&options).await?;
    let profile = if cfg!(debug_assertions) { Profile::Debug } else { Profile::Release };
    let mut pool = Pool::start_on_lab(&control_plane, &lab, profile).await?;
    // It has done its part: the host's namespace and the agent's rights.
    pool.kill_controller(0)?;
    step.done();
    let host = lab.hosts().into_iter().next().context("the lab has no host")?;
    let domains = Api::namespaced(control_plane.client().await?, &host_namespace(&host.name()));
    let (mut agent, mut libxl) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let through_agent = start_through_agent(&domains).await?;
        let by_libxl = start_by_libxl(&host).await?;
        eprintln!("start {round}: agent {through_agent:.2} s, libxl {by_libxl:.2} s");
        if round >= WARM_UP {
            agent.push(through_agent);
            libxl.push(by_libxl);
        }
    }
    let (agent, libxl) = (median(agent), median(libxl));
    Ok(DomainReport {
        agent_seconds: rounded(agent),
        libxl_seconds: rounded(libxl),
        ratio: rounded(agent / libxl),
    })
}

/// Seconds from the create of a Domain until the agent says that it runs; the Domain is gone afterwards.
async fn start_through_agent(domains: &Api<Domain>) -> Result<f64> {
    let uuid = Uuid::new_v4();
    let name = format!("bench.{uuid}");
    let object = json!({
        "metadata": {"name": name, "finalizers": [AGENT_FINALIZER]},
        "spec": {
            "virtualMachine": {"namespace": "bench", "name": uuid, "uid": uuid},
            "machine": {
                "cpus": 1,
                "memory": format!("{MEMORY_MIB}Mi"),
                "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": COMMAND_LINE}},
            },
            // Its end is not measured.
            "lifecycle": {"shutdownTimeout": "0s"},
        },
    });
    let domain = serde_json::from_value(object).context("the Domain of the benchmark")?;
    let began = Instant::now();
    domains.create(&PostParams::default(), &domain).await?;
    timeout(LIMIT, await_condition(domains.clone(), &name, runs))
        .await
        .context("the domain does not run")??;
    let took = began.elapsed().as_secs_f64();
    domains.delete(&name, &DeleteParams::default()).await?;
    let gone = |domain: Option<&Domain>| domain.is_none();
    timeout(LIMIT, await_condition(domains.clone(), &name, gone))
        .await
        .context("the domain does not go")??;
    Ok(took)
}

fn runs(domain: Option<&Domain>) -> bool {
    let phase = domain.and_then(|domain| domain.status.as_ref()).and_then(|status| status.phase);
    phase == Some(DomainPhase::Running)
}

/// Seconds that libxl takes to build the same domain and to let it run.
async fn start_by_libxl(host: &LabHost) -> Result<f64> {
    let uuid = Uuid::new_v4();
    let script = format!("DOMAIN={uuid}\nCONFIG='{}'\n{BARE}", libxl_config(uuid));
    let output = host.exec_with_input("sh", script.as_bytes(), LIMIT).await?;
    let (text, errors) = (output.text(), String::from_utf8_lossy(&output.stderr));
    ensure!(output.code == 0, "libxl does not start a domain: {text}{errors}");
    let times = text.split_whitespace().map(str::parse::<f64>).collect::<Result<Vec<_>, _>>();
    match times.with_context(|| format!("dom0 says {text:?}"))?.as_slice() {
        [begin, end] => Ok(end - begin),
        other => anyhow::bail!("dom0 says {other:?}"),
    }
}

/// What the agent asks libxl for when it is given the Domain above; names are those of libxl's own JSON.
fn libxl_config(uuid: Uuid) -> Value {
    let memory = MEMORY_MIB * 1024;
    json!({
        "c_info": {"type": "pvh", "name": format!("vm-{uuid}"), "uuid": uuid},
        "b_info": {
            "max_vcpus": 1, "avail_vcpus": [0], "max_memkb": memory, "target_memkb": memory,
            "kernel": "/guest/vmlinux", "ramdisk": "/guest/initrd", "cmdline": COMMAND_LINE,
            "type.pvh": {},
        },
        "disks": [], "nics": [],
        "on_poweroff": "preserve", "on_reboot": "preserve", "on_watchdog": "preserve", "on_crash": "preserve",
        "on_soft_reset": "preserve",
    })
}
