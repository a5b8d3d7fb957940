//! When dead boots were heard of last, seen gone, and fenced: what this term saw, and what earlier leaders wrote down.

use jiff::{SignedDuration, Timestamp};
use kubexen_crds::{Host, HostRecovery};
use kubexen_ownership::{HostBoot, liveness::Verdict};
use kubexen_runtime::Key;
use tokio::time::Instant;

use super::{
    board::{Board, Times},
    words::last_boot,
};
use crate::{context::Context, host::heartbeat::Heartbeat};

/// Notes when silent boots were heard of last, and seen gone.
pub(super) fn note(context: &Context, verdict: &Verdict, now: Instant) {
    let wall = context.clock.now();
    let mut board = context.recovery.board();
    let Board { times, roll, .. } = &mut *board;
    let is_silent = |boot: &HostBoot| verdict.silent.iter().any(|silence| silence.boot == *boot);
    times.retain(|boot, _| roll.fenced.contains_key(boot) || is_silent(boot));
    for silence in &verdict.silent {
        times.entry(silence.boot.clone()).or_insert_with(|| Times {
            last_sign: last_beat(context, &silence.boot, wall),
            gone: before(wall, now.saturating_duration_since(silence.gone)),
            fenced: None,
        });
    }
}

/// When the agent of a boot was seen to beat last; none if this process saw no heartbeat, or not that of this boot.
fn last_beat(context: &Context, boot: &HostBoot, wall: Timestamp) -> Option<Timestamp> {
    let host = context.view.hosts.get(&Key::cluster(boot.host.as_str()))?;
    match context.heartbeats.of(boot.host.as_str()) {
        Heartbeat::Beaten(age) if last_boot(&host).as_ref() == Some(boot) => Some(before(wall, age)),
        Heartbeat::Beaten(_) | Heartbeat::Unwitnessed(_) | Heartbeat::Never => None,
    }
}

fn before(wall: Timestamp, ago: std::time::Duration) -> Timestamp {
    wall.saturating_sub(SignedDuration::try_from(ago).unwrap_or_default()).unwrap_or(wall)
}

/// What an earlier leader wrote down of a boot.
fn written(context: &Context, boot: &HostBoot) -> Option<HostRecovery> {
    let host = context.view.hosts.get(&Key::cluster(boot.host.as_str()))?;
    let recovery = host.status.as_ref()?.recovery.clone()?;
    (recovery.boot_id == boot.boot_id.as_str()).then_some(recovery)
}

/// Sees to it that the board knows the times of a boot that died: as this process saw them, or as an earlier leader wrote them
/// down, or now.
pub(super) fn remember(context: &Context, board: &mut Board, boot: &HostBoot, now: Timestamp) {
    let is_fenced = board.roll.fenced.contains_key(boot);
    let known = |times: &Times| times.fenced.is_some() || !is_fenced;
    if board.times.get(boot).is_some_and(known) {
        return;
    }
    let written = written(context, boot);
    let times = board.times.entry(boot.clone()).or_insert_with(|| Times {
        last_sign: written.as_ref().and_then(|written| Some(written.last_sign.as_ref()?.0)),
        gone: written.as_ref().map_or(now, |written| written.lease_gone.0),
        fenced: None,
    });
    let known = written.and_then(|written| Some(written.fenced?.0));
    times.fenced = times.fenced.or(known).or(is_fenced.then_some(now));
}

/// When a boot was fenced, as far as this process or an earlier leader knows.
pub(crate) fn fenced_at(context: &Context, boot: &HostBoot) -> Option<Timestamp> {
    let seen = context.recovery.board().times.get(boot).and_then(|times| times.fenced);
    seen.or_else(|| Some(written(context, boot)?.fenced?.0))
}

/// The boot whose guests are still coming back, as the Host says.
pub(super) fn unfinished(host: &Host) -> Option<HostBoot> {
    let recovery = host.status.as_ref()?.recovery.as_ref()?;
    if recovery.completed.is_some() {
        return None;
    }
    super::words::boot_named(&Key::of(host).name, &recovery.boot_id)
}
