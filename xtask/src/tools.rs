//! `cargo xtask tools`: the control plane's programs, built from the versions that `tools/go.mod` pins.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use crate::repository::{self, output, root};

/// Build etcd, etcdctl, etcdutl, kube-apiserver, kube-controller-manager, kubectl and helm into target/tools
///
/// What is up to date is skipped. From cold it takes about eight minutes on two cores. Where KUBEBUILDER_ASSETS names a folder
/// (the one that setup-envtest fills), etcd, kube-apiserver and kubectl are linked from there instead of being built.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Build nothing; fail when something is missing or out of date
    #[arg(long)]
    check: bool,
}

/// A program, and the Go package that it is built from.
struct Tool {
    name: &'static str,
    package: &'static str,
    /// Whether setup-envtest provides it too.
    in_envtest: bool,
}

const TOOLS: [Tool; 7] = [
    Tool { name: "etcd", package: "go.etcd.io/etcd/server/v3", in_envtest: true },
    Tool { name: "etcdctl", package: "go.etcd.io/etcd/etcdctl/v3", in_envtest: false },
    Tool { name: "etcdutl", package: "go.etcd.io/etcd/etcdutl/v3", in_envtest: false },
    Tool { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver", in_envtest: true },
    Tool {
        name: "kube-controller-manager",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        in_envtest: false,
    },
    Tool { name: "kubectl", package: "k8s.io/kubernetes/cmd/kubectl", in_envtest: true },
    Tool { name: "helm", package: "helm.sh/helm/v4/cmd/helm", in_envtest: false },
];

/// Where one program comes from, as far as that decides whether it is up to date.
#[derive(Debug)]
enum Source {
    /// Linked from the folder that KUBEBUILDER_ASSETS names.
    Assets(PathBuf),
    /// Built with these linker flags.
    Go { linker_flags: String },
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check {
        let missing = outdated()?.into_iter().map(|(tool, ..)| tool.name).collect::<Vec<_>>();
        ensure!(
            missing.is_empty(),
            "missing or out of date: {}; run `cargo xtask tools`",
            missing.join(", ")
        );
        return Ok(());
    }
    ensure()
}

/// Brings all programs up to date.
pub fn ensure() -> Result<()> {
    let outdated = outdated()?;
    if outdated.iter().any(|(_, source, _)| matches!(source, Source::Go { .. })) {
        check_go()?;
    }
    std::fs::create_dir_all(repository::tools())?;
    for (tool, source, stamp) in outdated {
        let program = repository::tools().join(tool.name);
        match source {
            Source::Assets(asset) => link(&asset, &program)?,
            Source::Go { linker_flags } => build(tool, &linker_flags, &program)?,
        }
        std::fs::write(stamp_file(tool), stamp)?;
    }
    Ok(())
}

/// The programs that are missing or out of date, with their sources and the stamps that they will have.
fn outdated() -> Result<Vec<(&'static Tool, Source, String)>> {
    let read = |name: &str| {
        let path = root().join("tools").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (module, sums) = (read("go.mod")?, read("go.sum")?);
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let mut outdated = Vec::new();
    for tool in &TOOLS {
        let asset = assets.as_ref().map(|folder| folder.join(tool.name));
        let source = match asset.filter(|asset| tool.in_envtest && asset.is_file()) {
            Some(asset) => Source::Assets(asset),
            None => Source::Go { linker_flags: linker_flags(&module)? },
        };
        let stamp = stamp(&source, &module, &sums);
        let present = repository::tools().join(tool.name).is_file();
        if !present || std::fs::read_to_string(stamp_file(tool)).ok().as_ref() != Some(&stamp) {
            outdated.push((tool, source, stamp));
        }
    }
    Ok(outdated)
}

/// What a program was made from, in short: equal stamps mean equal programs.
fn stamp(source: &Source, module: &str, sums: &str) -> String {
    match source {
        Source::Assets(asset) => format!("linked {}\n", asset.display()),
        Source::Go { linker_flags } => {
            let mut hasher = DefaultHasher::new();
            (module, sums, linker_flags).hash(&mut hasher);
            format!("built {:016x}\n", hasher.finish())
        }
    }
}

fn stamp_file(tool: &Tool) -> PathBuf {
    repository::tools().join(format!(".{}.stamp", tool.name))
}

/// The version that `module`, the text of a go.mod, requires of a module.
fn required_version<'a>(module: &'a str, name: &str) -> Result<&'a str> {
    module
        .lines()
        .map(|line| line.trim().trim_start_matches("require "))
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next())
        .ok_or_else(|| anyhow!("tools/go.mod does not require {name}"))
}

/// Stamps the Kubernetes version into the programs: without it they call themselves v0.0.0-master, and clients misbehave.
fn linker_flags(module: &str) -> Result<String> {
    let version = required_version(module, "k8s.io/kubernetes")?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("tools/go.mod requires k8s.io/kubernetes {version}, which is no version");
    };
    Ok(format!(
        "-s -w -X k8s.io/component-base/version.gitVersion={version} -X k8s.io/component-base/version.gitMajor={major} \
         -X k8s.io/component-base/version.gitMinor={minor} -X k8s.io/client-go/pkg/version.gitVersion={version}"
    ))
}

/// Makes sure that there is a Go that is new enough, or says what to do.
fn check_go() -> Result<()> {
    const INSTALL: &str = "install it from https://go.dev/dl, or set KUBEBUILDER_ASSETS to a folder with etcd, \
                           kube-apiserver and kubectl (helm, etcdctl, etcdutl and kube-controller-manager need Go all the same)";
    let module = std::fs::read_to_string(root().join("tools/go.mod"))?;
    let needed = required_version(&module, "go")?;
    if !repository::installed("go") {
        bail!(
            "Go {needed} or newer is needed to build the control plane's programs, and there is none: {INSTALL}"
        );
    }
    // From 1.21 on, Go fetches the version that go.mod asks for, unless GOTOOLCHAIN forbids it; then this fails.
    let found = output(Command::new("go").args(["env", "GOVERSION"]).current_dir(root().join("tools")))
        .with_context(|| format!("Go {needed} or newer is needed: {INSTALL}"))?;
    let found = found.trim().trim_start_matches("go");
    ensure!(
        numbers(found) >= numbers(needed),
        "Go {needed} or newer is needed, and this is {found}: {INSTALL}"
    );
    Ok(())
}

/// The numbers of a Go version, such as 1.26.8; what is not a number ends it.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|number| number.parse().ok()).collect()
}

fn build(tool: &Tool, linker_flags: &str, program: &Path) -> Result<()> {
    eprintln!("building {} ...", tool.name);
    let started = Instant::now();
    // Built beside its place and then moved, so that an interrupted build leaves no half a program.
    let unfinished = program.with_extension("unfinished");
    let mut command = Command::new("go");
    command
        .current_dir(root().join("tools"))
        .env("CGO_ENABLED", "0")
        // The linker would leave the debug information out; a sixth of the time goes into making it.
        .args(["build", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", linker_flags, "-o"])
        .arg(&unfinished)
        .arg(tool.package);
    repository::run(&mut command)?;
    std::fs::rename(&unfinished, program).with_context(|| format!("cannot write {}", program.display()))?;
    eprintln!("built {} in {} s", tool.name, started.elapsed().as_secs());
    Ok(())
}

fn link(asset: &Path, program: &Path) -> Result<()> {
    match std::fs::remove_file(program) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let asset = std::path::absolute(asset)?;
    std::os::unix::fs::symlink(&asset, program)
        .with_context(|| format!("cannot link {}", program.display()))?;
    eprintln!("linked {}", asset.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "module x\n\ngo 1.26.8\n\nrequire (\n\tk8s.io/kubernetes v1.37.2 // indirect\n)\n";

    #[test]
    fn versions_are_those_of_the_module() {
        assert_eq!(required_version(MODULE, "k8s.io/kubernetes").unwrap(), "v1.37.2");
        assert_eq!(required_version(MODULE, "go").unwrap(), "1.26.8");
        assert!(required_version(MODULE, "k8s.io/kube").is_err());
        assert!(linker_flags(MODULE).unwrap().contains("gitMinor=37 "));
    }

    #[test]
    fn a_changed_module_makes_every_program_out_of_date() {
        let source = Source::Go { linker_flags: linker_flags(MODULE).unwrap() };
        assert_eq!(stamp(&source, MODULE, ""), stamp(&source, MODULE, ""));
        assert_ne!(stamp(&source, MODULE, ""), stamp(&source, MODULE, "changed"));
    }

    #[test]
    fn newer_versions_of_go_are_known_by_their_numbers() {
        assert!(numbers("1.26.10") > numbers("1.26.8"));
        assert!(numbers("1.9") < numbers("1.26.8"));
        assert!(numbers("1.27rc1") < numbers("1.27"), "a release candidate may miss what the release has");
    }
}
