//! What must hold of every hypervisor when guests leave through streams and come back from them.

use super::{
    Bench, Case, POLL, Stop, Verdict,
    cases::{cases, check},
};
use crate::hypervisor::{
    BootType, DomainConfig, DomainState, HypervisorError, Incoming, OnProgress, Outgoing, Sent, SuspendMode,
};
use futures::FutureExt;
use kubexen_crds::domain::StopReason;
use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, duplex, empty, repeat, sink},
    sync::Notify,
    time::{Instant, sleep},
};
use uuid::Uuid;

cases![
    a_suspended_guest_is_seen_so_and_says_nothing_until_it_is_resumed,
    a_guest_runs_on_from_its_stream_once_it_is_claimed,
    a_guest_with_emulated_devices_runs_on_from_its_stream,
    a_paravirtualised_guest_runs_on_from_its_stream_and_is_suspended_live_only_where_the_host_can,
    a_live_suspend_whose_stream_breaks_leaves_the_guest_running,
    a_still_suspend_whose_stream_breaks_leaves_the_guest_running,
    a_live_suspend_that_is_broken_off_leaves_the_guest_running,
    a_guest_that_does_not_run_is_not_suspended,
    a_stream_that_is_cut_or_is_none_leaves_nothing,
    a_restore_that_is_broken_off_leaves_nothing,
    a_restored_domain_that_nobody_claims_can_be_destroyed,
    a_token_is_replaced_by_a_claim,
];

/// Makes a guest tell each second of its life.
const COUNT: &str = "kubexen.count";

async fn a_suspended_guest_is_seen_so_and_says_nothing_until_it_is_resumed(bench: &Bench) -> Verdict {
    let config = bench.counting(BootType::Pvh)?;
    bench.start(&config).await?;
    bench.counts_beyond(config.uuid, None).await?;
    let sent = bench.suspend(&config, SuspendMode::Live, Box::new(sink())).await?;
    check!(sent.bytes >= config.memory_kib * 1024 / 2, "{sent:?} of {} KiB", config.memory_kib);
    check!(sent.rounds.is_some_and(|rounds| rounds >= 1), "{sent:?}");
    let info = bench.seen(config.uuid).await?;
    check!(info.state == DomainState::Suspended, "{:?} after a suspend", info.state);
    check!(info.token == Some(config.token), "the token went with the guest");
    let beside = bench.hypervisor.restore(&config, Box::new(empty())).await;
    check!(matches!(beside, Err(HypervisorError::AlreadyExists(_))), "beside its suspended self: {beside:?}");
    // What was on its way to the console has arrived by now.
    sleep(Duration::from_secs(2)).await;
    let last = bench.last_count(config.uuid).await?;
    sleep(Duration::from_secs(3)).await;
    check!(bench.last_count(config.uuid).await? == last, "it counts while it is suspended");
    bench.hypervisor.resume(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Running).await?;
    bench.hypervisor.resume(config.uuid).await?;
    bench.counts_beyond(config.uuid, last).await
}

async fn a_guest_runs_on_from_its_stream_once_it_is_claimed(bench: &Bench) -> Verdict {
    let config = bench.counting(BootType::Pvh)?;
    moves(bench, config, SuspendMode::Live).await
}

async fn a_guest_with_emulated_devices_runs_on_from_its_stream(bench: &Bench) -> Verdict {
    let config = bench.counting(BootType::Hvm)?;
    moves(bench, config, SuspendMode::Still).await
}

async fn a_paravirtualised_guest_runs_on_from_its_stream_and_is_suspended_live_only_where_the_host_can(
    bench: &Bench,
) -> Verdict {
    let config = bench.counting(BootType::Pv)?;
    if !bench.hypervisor.facts().await?.suspends_live(BootType::Pv) {
        bench.start(&config).await?;
        bench.counts_beyond(config.uuid, None).await?;
        let live = bench.suspend_if_possible(&config, SuspendMode::Live, Box::new(sink())).await;
        check!(matches!(live, Err(HypervisorError::Refused { .. })), "a live suspend: {live:?}");
        bench.runs_on(config.uuid).await?;
        bench.hypervisor.destroy(config.uuid).await?;
    }
    moves(bench, config, SuspendMode::Still).await
}

/// Suspends a guest to a file, takes it apart, restores it from there, and sees it go on.
async fn moves(bench: &Bench, mut config: DomainConfig, mode: SuspendMode) -> Verdict {
    let uuid = config.uuid;
    bench.start(&config).await?;
    bench.counts_beyond(uuid, None).await?;
    let file = bench.file(uuid).await?;
    bench.suspend(&config, mode, file.write().await?).await?;
    let last = bench.last_count(uuid).await?;
    bench.hypervisor.destroy(uuid).await?;
    config.token += 1;
    let domid = bench.hypervisor.restore(&config, file.read(u64::MAX).await?).await?;
    let info = bench.seen(uuid).await?;
    check!(info.domid == domid, "restored as {domid}, found as {}", info.domid);
    check!(
        (info.state, info.token, info.sent_under) == (DomainState::Restored, None, Some(config.token)),
        "after the restore: {info:?}"
    );
    let unclaimed = bench.hypervisor.unpause(uuid).await;
    check!(matches!(unclaimed, Err(HypervisorError::Refused { .. })), "without a claim: {unclaimed:?}");
    bench.hypervisor.claim(uuid, config.token + 1).await?;
    let info = bench.seen(uuid).await?;
    check!(
        (info.state, info.token, info.sent_under) == (DomainState::Paused, Some(config.token + 1), None),
        "after the claim: {info:?}"
    );
    bench.hypervisor.unpause(uuid).await?;
    bench.counts_beyond(uuid, last).await?;
    let first = counts(&bench.hypervisor.console(uuid).await?).first().copied();
    check!(first > Some(0), "it started anew");
    bench.hypervisor.request_shutdown(uuid).await?;
    bench.reaches(uuid, DomainState::Shutdown(StopReason::Poweroff)).await
}

async fn a_live_suspend_whose_stream_breaks_leaves_the_guest_running(bench: &Bench) -> Verdict {
    breaks(bench, SuspendMode::Live).await
}

async fn a_still_suspend_whose_stream_breaks_leaves_the_guest_running(bench: &Bench) -> Verdict {
    breaks(bench, SuspendMode::Still).await
}

async fn breaks(bench: &Bench, mode: SuspendMode) -> Verdict {
    let config = bench.counting(BootType::Pvh)?;
    bench.start(&config).await?;
    bench.counts_beyond(config.uuid, None).await?;
    let (ours, theirs) = duplex(PIPE);
    let (begun, told) = beginning();
    let (result, ()) = futures::join!(
        bench.hypervisor.suspend(config.uuid, mode, Box::new(theirs), told),
        begun.notified().map(|()| drop(ours))
    );
    check!(matches!(result, Err(HypervisorError::StreamBroken { .. })), "{result:?}");
    bench.runs_on(config.uuid).await?;
    // It can still leave: nothing of the first attempt stands in the way.
    bench.suspend(&config, mode, Box::new(sink())).await.map(drop)
}

async fn a_live_suspend_that_is_broken_off_leaves_the_guest_running(bench: &Bench) -> Verdict {
    let config = bench.counting(BootType::Pvh)?;
    bench.start(&config).await?;
    bench.counts_beyond(config.uuid, None).await?;
    // Nothing of what is written is read, but the other end stays open.
    let (_ours, theirs) = duplex(PIPE);
    let (begun, told) = beginning();
    let (result, aborted) = futures::join!(
        bench.hypervisor.suspend(config.uuid, SuspendMode::Live, Box::new(theirs), told),
        async {
            begun.notified().await;
            bench.hypervisor.abort(config.uuid).await?;
            Ok::<_, Stop>(bench.seen(config.uuid).await?.state)
        }
    );
    check!(matches!(result, Err(HypervisorError::StreamBroken { .. })), "{result:?}");
    check!(aborted? == DomainState::Running, "it did not run when the abort had ended");
    bench.runs_on(config.uuid).await?;
    // There is nothing to break off now.
    bench.hypervisor.abort(config.uuid).await?;
    bench.reaches(config.uuid, DomainState::Running).await
}

async fn a_guest_that_does_not_run_is_not_suspended(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    bench.hypervisor.create(&config).await?;
    let paused = bench.suspend_if_possible(&config, SuspendMode::Still, Box::new(sink())).await;
    check!(matches!(paused, Err(HypervisorError::Refused { .. })), "{paused:?}");
    check!(bench.seen(config.uuid).await?.state == DomainState::Paused, "it is paused no more");
    Ok(())
}

async fn a_stream_that_is_cut_or_is_none_leaves_nothing(bench: &Bench) -> Verdict {
    let (config, file) = bench.left_in_a_file().await?;
    let length = file.length().await?;
    let noise = repeat(0xff).take(1 << 20);
    let streams: [(&str, Incoming); 4] = [
        ("nothing", Box::new(empty())),
        ("noise", Box::new(noise)),
        ("its beginning", file.read(length / 2).await?),
        ("all but its end", file.read(length - 64).await?),
    ];
    for (what, stream) in streams {
        let result = bench.hypervisor.restore(&config, stream).await;
        check!(matches!(result, Err(HypervisorError::Refused { .. })), "from {what}: {result:?}");
        check!(bench.hypervisor.find(config.uuid).await?.is_none(), "something is left of {what}");
    }
    let breaks = file.read(length - 4).await?.chain(Broken);
    let result = bench.hypervisor.restore(&config, Box::new(breaks)).await;
    check!(
        matches!(result, Err(HypervisorError::StreamBroken { .. })),
        "from one that breaks at its end: {result:?}"
    );
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "something is left of one that breaks");
    Ok(())
}

async fn a_restore_that_is_broken_off_leaves_nothing(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    let (mut ours, theirs) = duplex(PIPE);
    let (result, aborted) = futures::join!(bench.hypervisor.restore(&config, Box::new(theirs)), async {
        ours.write_all(b"K").await.map_err(|error| Stop::Fail(error.to_string()))?;
        bench.reaches(config.uuid, DomainState::HalfBuilt).await?;
        bench.hypervisor.abort(config.uuid).await?;
        check!(bench.hypervisor.find(config.uuid).await?.is_none(), "left after the abort");
        Ok(())
    });
    aborted?;
    check!(matches!(result, Err(HypervisorError::StreamBroken { .. })), "{result:?}");
    Ok(())
}

async fn a_restored_domain_that_nobody_claims_can_be_destroyed(bench: &Bench) -> Verdict {
    let (config, file) = bench.left_in_a_file().await?;
    bench.hypervisor.restore(&config, file.read(u64::MAX).await?).await?;
    bench.reaches(config.uuid, DomainState::Restored).await?;
    let again = bench.hypervisor.create(&config).await;
    check!(matches!(again, Err(HypervisorError::AlreadyExists(_))), "a second one: {again:?}");
    bench.hypervisor.destroy(config.uuid).await?;
    check!(bench.hypervisor.find(config.uuid).await?.is_none(), "still there after destroy");
    Ok(())
}

async fn a_token_is_replaced_by_a_claim(bench: &Bench) -> Verdict {
    let config = bench.guest("");
    bench.hypervisor.create(&config).await?;
    bench.hypervisor.claim(config.uuid, config.token + 2).await?;
    let info = bench.seen(config.uuid).await?;
    check!(
        (info.state, info.token) == (DomainState::Paused, Some(config.token + 2)),
        "after the claim: {info:?}"
    );
    Ok(())
}

/// A stream whose other end is gone.
struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

/// Bytes that a pipe between the two ends of a stream holds.
const PIPE: usize = 64 * 1024;

/// Tells when a suspend has written something.
fn beginning() -> (Arc<Notify>, OnProgress) {
    let begun = Arc::new(Notify::new());
    let told = Arc::clone(&begun);
    (begun, Arc::new(move |_| told.notify_one()))
}

/// What a guest counted on a console, in order.
fn counts(console: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(console);
    // The last line may not be whole yet.
    let lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines();
    lines.filter_map(|line| line.trim_end().strip_prefix("TICK ")?.parse().ok()).collect()
}

/// A file for one guest, which is removed in the end.
struct GuestFile(PathBuf);

impl GuestFile {
    async fn write(&self) -> Result<Outgoing, Stop> {
        Ok(Box::new(File::create(&self.0).await?))
    }

    /// The first bytes of it.
    async fn read(&self, bytes: u64) -> Result<Incoming, Stop> {
        Ok(Box::new(File::open(&self.0).await?.take(bytes)))
    }

    async fn length(&self) -> Result<u64, Stop> {
        Ok(tokio::fs::metadata(&self.0).await?.len())
    }
}

impl Drop for GuestFile {
    fn drop(&mut self) {
        // In a folder that was made for this.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Fail(format!("a file of the suite: {error}"))
    }
}

impl Bench {
    /// A guest that counts, with a disk and an interface where the host offers them.
    fn counting(&self, boot: BootType) -> Result<DomainConfig, Stop> {
        let mut config = self.guest(COUNT);
        config.boot = boot;
        match boot {
            BootType::Pvh => {}
            BootType::Pv if self.guests.pv => {}
            BootType::Pv => return Err(Stop::Skip("no PV guests on this host")),
            BootType::Hvm => {
                let Some(mut kernel) = self.guests.hvm_kernel.clone() else {
                    return Err(Stop::Skip("no HVM guests on this host"));
                };
                kernel.command_line = format!("{} {COUNT}", kernel.command_line);
                config.kernel = Some(kernel);
            }
        }
        (config.disks, config.interfaces) = self.guests.devices();
        Ok(config)
    }

    async fn file(&self, uuid: Uuid) -> Result<GuestFile, Stop> {
        tokio::fs::create_dir_all(&self.guests.folder).await?;
        Ok(GuestFile(self.guests.folder.join(uuid.to_string())))
    }

    /// A guest that was suspended to a file and taken apart.
    async fn left_in_a_file(&self) -> Result<(DomainConfig, GuestFile), Stop> {
        let config = self.counting(BootType::Pvh)?;
        self.start(&config).await?;
        self.counts_beyond(config.uuid, None).await?;
        let file = self.file(config.uuid).await?;
        self.suspend(&config, SuspendMode::Still, file.write().await?).await?;
        self.hypervisor.destroy(config.uuid).await?;
        Ok((config, file))
    }

    async fn suspend(
        &self,
        config: &DomainConfig,
        mode: SuspendMode,
        stream: Outgoing,
    ) -> Result<Sent, Stop> {
        Ok(self.suspend_if_possible(config, mode, stream).await?)
    }

    async fn suspend_if_possible(
        &self,
        config: &DomainConfig,
        mode: SuspendMode,
        stream: Outgoing,
    ) -> Result<Sent, HypervisorError> {
        self.hypervisor.suspend(config.uuid, mode, stream, Arc::new(|_| {})).await
    }

    async fn last_count(&self, uuid: Uuid) -> Result<Option<u64>, Stop> {
        Ok(counts(&self.hypervisor.console(uuid).await?).last().copied())
    }

    /// Waits until the guest has counted further.
    async fn counts_beyond(&self, uuid: Uuid, last: Option<u64>) -> Verdict {
        let deadline = Instant::now() + self.patience;
        while self.last_count(uuid).await? <= last {
            check!(Instant::now() < deadline, "{uuid} did not count beyond {last:?} in {:?}", self.patience);
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until the guest, which is running, counts on.
    async fn runs_on(&self, uuid: Uuid) -> Verdict {
        let state = self.seen(uuid).await?.state;
        check!(state == DomainState::Running, "it is {state:?}");
        self.counts_beyond(uuid, self.last_count(uuid).await?).await
    }
}
