//! Who else uses Xen's watchdog, and whether time in dom0 goes as in Xen.

use crate::fence::WatchdogError;
use std::{fs, path::Path};

/// Programs that take timers, as the kernel calls their processes, and what to do about them.
const PROGRAMS: [(&str, &str); 2] =
    [("xenwatchdogd", "stop and disable its service"), ("xhad", "switch the HA of XAPI off")];

/// What the kernel's driver calls itself; in kernels before 5.6 as the second says.
const DRIVERS: [&str; 2] = ["xen_wdt", "wdt"];

/// Clock sources that do not lose time while dom0 does not run.
const CLOCK_SOURCES: [&str; 2] = ["xen", "tsc"];
const CLOCK_SOURCE: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";

/// Whether the system below `root` lets its watchdog be relied upon.
///
/// # Errors
/// [`WatchdogError`] that says what to change.
pub fn check(root: &Path) -> Result<(), WatchdogError> {
    let others = others(root);
    if !others.is_empty() {
        return Err(WatchdogError(others.join("; ")));
    }
    let source = read(&root.join(CLOCK_SOURCE));
    if CLOCK_SOURCES.contains(&source.as_str()) {
        Ok(())
    } else {
        Err(WatchdogError(format!(
            "the clock source of dom0 is `{source}`, which may lose time: boot dom0 with `clocksource=xen`"
        )))
    }
}

/// Who else uses Xen's watchdog, and what to do about it.
pub fn others(root: &Path) -> Vec<String> {
    let mut others = Vec::new();
    for name in names(&root.join("proc")) {
        let process = read(&root.join("proc").join(&name).join("comm"));
        if let Some((program, advice)) = PROGRAMS.iter().find(|(program, _)| *program == process) {
            others.push(format!("`{program}` (process {name}) uses Xen's: {advice}"));
        }
    }
    let devices = root.join("sys/class/watchdog");
    for name in names(&devices) {
        let device = devices.join(&name);
        // A device that nobody has opened has no timer.
        if DRIVERS.contains(&&*read(&device.join("identity"))) && read(&device.join("state")) == "active" {
            others.push(format!(
                "a program uses Xen's through /dev/{name}: stop it, or keep the kernel's module `xen_wdt` from being loaded"
            ));
        }
    }
    others
}

/// What is in a folder, in order; nothing if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The one line of a file; nothing if it cannot be read, as of a process that has just ended.
fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct System(tempfile::TempDir);

    impl System {
        fn new() -> Self {
            let system = Self(tempfile::tempdir().unwrap());
            system.with(CLOCK_SOURCE, "tsc").with("proc/1/comm", "init").with("proc/cmdline", "quiet");
            system
        }

        fn with(&self, file: &str, line: &str) -> &Self {
            let file = self.0.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{line}\n")).unwrap();
            self
        }

        fn complaint(&self) -> String {
            check(self.0.path()).unwrap_err().0
        }
    }

    #[test]
    fn another_user_of_the_watchdog_is_named_with_what_to_do() {
        let system = System::new();
        check(system.0.path()).unwrap();
        system.with("proc/77/comm", "xenwatchdogd");
        assert_eq!(
            system.complaint(),
            "`xenwatchdogd` (process 77) uses Xen's: stop and disable its service"
        );
        system.with("proc/78/comm", "xhad");
        assert!(system.complaint().ends_with("`xhad` (process 78) uses Xen's: switch the HA of XAPI off"));
    }

    #[test]
    fn the_kernels_driver_is_in_the_way_only_while_somebody_has_it_open() {
        let system = System::new();
        system.with("sys/class/watchdog/watchdog0/identity", "iTCO_wdt");
        system.with("sys/class/watchdog/watchdog0/state", "active");
        system.with("sys/class/watchdog/watchdog1/identity", "xen_wdt");
        system.with("sys/class/watchdog/watchdog1/state", "inactive");
        check(system.0.path()).unwrap();
        system.with("sys/class/watchdog/watchdog1/state", "active");
        assert!(system.complaint().contains("/dev/watchdog1"), "{}", system.complaint());
    }

    #[test]
    fn a_clock_that_may_lose_time_is_refused() {
        let system = System::new();
        system.with(CLOCK_SOURCE, "jiffies");
        assert!(system.complaint().contains("`jiffies`"), "{}", system.complaint());
        assert!(system.complaint().contains("`clocksource=xen`"), "{}", system.complaint());
    }
}
