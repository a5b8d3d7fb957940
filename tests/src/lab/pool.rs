//! A lab as a whole: its folder, its hosts, and that nothing of it is left when it is over.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use super::archive::Archive;
use super::host::LabHost;
use super::hub::{Hub, Tap};
use super::image::{self, Extra, Image};
use super::machine;
use super::process::ProcessRecord;
use super::repair;
use super::state::{self, Lifetime, State};

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Folder of all labs and of their cache.
    pub root: PathBuf,
    /// Tells labs on one machine apart.
    pub name: String,
    /// How many hosts.
    pub hosts: usize,
    /// Whether it outlives its maker.
    pub lifetime: Lifetime,
    /// Memory of each host in MiB; a third of the default is dom0's, the rest is for guests.
    pub memory_mib: u32,
    /// Memory of each dom0 in MiB. The test guest needs 96 MiB of what is left.
    pub dom0_memory_mib: u32,
    /// Size of the LUN that all hosts see, in MiB; it takes only the room that is written.
    pub lun_mib: u64,
    /// Size of each host's own disk in MiB; likewise.
    pub data_mib: u64,
    /// Files that all dom0s get besides what the lab itself needs: the node agent, its configuration.
    pub extras: Vec<Extra>,
    /// What is to see all frames between the hosts, in a lab that ends with its maker.
    pub tap: Option<Tap>,
}

impl LabOptions {
    /// A lab of two hosts that ends with its maker.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            root: default_root(),
            name: name.into(),
            hosts: 2,
            lifetime: Lifetime::Owned,
            memory_mib: 2048,
            dom0_memory_mib: 768,
            lun_mib: 1024,
            data_mib: 4096,
            extras: Vec::new(),
            tap: None,
        }
    }
}

/// `lab` in the folder into which cargo builds this workspace.
pub fn default_root() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("lab")
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    hub: Option<Hub>,
}

/// What a lab and its hosts have in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// The lab's folder.
    pub(super) folder: PathBuf,
    state: Mutex<State>,
    /// Whether dropping this ends the lab.
    ours: AtomicBool,
}

impl Lab {
    /// Builds what the hosts boot from, boots them all at once, and returns when all can run commands.
    ///
    /// Dropping the future ends what was started; so does an error.
    ///
    /// # Errors
    /// When a lab of this name is up, the image cannot be built, or a host does not boot; with the end of its console.
    pub async fn up(options: &LabOptions) -> Result<Self> {
        state::check_name(&options.name)?;
        if options.hosts == 0 || options.hosts > 99 {
            bail!("a lab has 1 to 99 hosts, not {}", options.hosts);
        }
        let image = image::build(&options.root.join("cache")).await?;
        let prepared = options.clone();
        let mut lab = tokio::task::spawn_blocking(move || prepare(&prepared, &image)).await??;
        if lab.shared.state().switched {
            lab.start_hub(options)?;
        }
        let hosts = lab.hosts();
        futures::future::try_join_all(hosts.iter().map(LabHost::power_on)).await?;
        if options.lifetime == Lifetime::Detached {
            lab.shared.ours.store(false, Ordering::Relaxed);
        }
        Ok(lab)
    }

    /// The lab that `lab up` left running under this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        state::check_name(name)?;
        let folder = root.join(name);
        let Some(state) = State::load(&folder)? else {
            bail!("there is no lab {name:?}; `lab up --name {name}` makes it");
        };
        let shared = Shared { folder, state: Mutex::new(state), ours: AtomicBool::new(false) };
        Ok(Self { shared: Arc::new(shared), hub: None })
    }

    /// All hosts, `xen-1` first.
    pub fn hosts(&self) -> Vec<LabHost> {
        (1..=self.shared.state().machines.len())
            .map(|number| LabHost::new(number, Arc::clone(&self.shared)))
            .collect()
    }

    /// The host of this name.
    ///
    /// # Errors
    /// When the lab has no such host.
    pub fn host(&self, name: &str) -> Result<LabHost> {
        let hosts = self.hosts();
        let names: Vec<_> = hosts.iter().map(LabHost::name).collect();
        let known = names.join(", ");
        hosts
            .into_iter()
            .find(|host| host.name() == name)
            .with_context(|| format!("the lab has no host {name:?}; it has {known}"))
    }

    /// The folder with the logs and disks of this lab.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Switches all hosts off at once, as a power cut does, and removes all that the lab has left.
    ///
    /// # Errors
    /// When a process does not die or the folder cannot be removed.
    pub async fn down(self) -> Result<()> {
        self.shared.ours.store(false, Ordering::Relaxed);
        let (folder, state) = (self.shared.folder.clone(), self.shared.state().clone());
        drop(self.hub);
        tokio::task::spawn_blocking(move || remove(&folder, &state)).await?
    }

    fn start_hub(&mut self, options: &LabOptions) -> Result<()> {
        match options.lifetime {
            Lifetime::Owned => {
                self.hub = Some(Hub::start(&self.shared.folder, options.hosts, options.tap.as_ref())?)
            }
            Lifetime::Detached => {
                let child = Command::new("setsid")
                    .arg(std::env::current_exe()?)
                    .args([
                        "lab",
                        "hub",
                        "--name",
                        &options.name,
                        "--hosts",
                        &options.hosts.to_string(),
                        "--root",
                    ])
                    .arg(&options.root)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(File::create(self.shared.folder.join("hub.log"))?)
                    .spawn()
                    .context("the hub between the hosts does not start")?;
                let hub = ProcessRecord::of(child.id())?;
                self.shared.change(|state| state.hub = Some(hub))?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// The state as it is now. Nothing under this lock can panic halfway, so a poisoned one is as good as any.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and writes it down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.state();
        change(&mut state);
        state.save(&self.folder)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.ours.load(Ordering::Relaxed) {
            let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = remove(&self.folder, state) {
                eprintln!("the lab in {} was not removed: {error:#}", self.folder.display());
            }
        }
    }
}

/// Makes the lab's folder with all that its hosts boot from; no host runs yet.
fn prepare(options: &LabOptions, image: &Image) -> Result<Lab> {
    // Two commands that make a lab of the same name take turns here.
    let root = File::open(&options.root)?;
    root.lock().with_context(|| format!("cannot lock {}", options.root.display()))?;
    sweep(&options.root)?;
    let folder = options.root.join(&options.name);
    if let Some(state) = State::load(&folder)? {
        if state.in_use() {
            bail!("the lab {:?} is up already; `lab down --name {0}` ends it", options.name);
        }
        remove(&folder, &state)?;
    }
    let state = State {
        lifetime: options.lifetime,
        maker: ProcessRecord::of(std::process::id())?,
        token: Uuid::new_v4().simple().to_string(),
        memory_mib: options.memory_mib,
        dom0_memory_mib: options.dom0_memory_mib,
        switched: options.hosts > 2 || options.tap.is_some(),
        hub: None,
        machines: vec![None; options.hosts],
    };
    std::fs::create_dir_all(folder.join("segment"))?;
    state.save(&folder)?;
    let shared =
        Shared { folder: folder.clone(), state: Mutex::new(state.clone()), ours: AtomicBool::new(true) };
    let lab = Lab { shared: Arc::new(shared), hub: None };

    // Links, because the cache may forget a version while the lab still boots hosts from it.
    std::fs::hard_link(&image.xen, folder.join("xen"))?;
    std::fs::hard_link(&image.kernel, folder.join("vmlinuz"))?;
    std::fs::hard_link(&image.repair, folder.join(repair::FILE))?;
    let mut overlay = Archive::new();
    overlay.bytes("/etc/kubexen-lab/token", false, format!("{}\n", state.token));
    overlay.bytes("/etc/hosts", false, hosts_file(options.hosts));
    let scratch = tempfile::tempdir_in(&folder)?;
    image::add_extras(&mut overlay, &options.extras, scratch.path())?;
    image::assemble(image, &overlay, &folder.join("dom0.cpio"))?;

    File::create(folder.join("lun.img"))?.set_len(options.lun_mib << 20)?;
    for number in 1..=options.hosts {
        let host = folder.join(machine::name(number));
        std::fs::create_dir(&host)?;
        data_disk(&host.join("data.img"), options.data_mib)?;
    }
    Ok(lab)
}

/// Removes labs whose owners died too suddenly to do it.
fn sweep(root: &Path) -> Result<()> {
    for (folder, state) in state::all(root)? {
        if state.lifetime == Lifetime::Owned && !state.maker.is_alive() {
            remove(&folder, &state)?;
        }
    }
    Ok(())
}

fn remove(folder: &Path, state: &State) -> Result<()> {
    for process in state.processes() {
        process.kill_now();
    }
    std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

fn hosts_file(hosts: usize) -> String {
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for number in 1..=hosts {
        text.push_str(&format!("10.77.0.{number} {}\n", machine::name(number)));
    }
    text
}

/// A sparse file with an empty ext4 in it, made here because it takes a second here and many in dom0.
fn data_disk(path: &Path, mib: u64) -> Result<()> {
    File::create(path)?.set_len(mib << 20)?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"])
        .arg(path)
        .output()
        .context("mkfs.ext4 does not run")?;
    if !output.status.success() {
        bail!("mkfs.ext4 failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
