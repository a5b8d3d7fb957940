//! Whether the members of the pool's store are of a version that can be relied on.

use super::Fence;
use kubexen_ownership::liveness::OldMember;
use std::time::Duration;
use tokio::time::sleep;
use tracing::warn;

/// How soon the members are asked again if one is too old, or if nobody can say.
const SOON: Duration = Duration::from_secs(30);
/// How soon they are asked again if none is: members come and go.
const LATER: Duration = Duration::from_secs(600);

impl Fence {
    /// Asks the members for their versions, for ever. Beside the renewals, which no member that does not answer may hold up.
    pub(super) async fn look_at_versions(&self) {
        loop {
            let pause = match self.liveness.old_members().await {
                Ok(old) => {
                    let why = old.first().map(too_old);
                    let pause = if why.is_some() { SOON } else { LATER };
                    self.lock().too_old = why;
                    pause
                }
                Err(error) => {
                    warn!(%error, "the versions of the pool's store could not be read");
                    SOON
                }
            };
            sleep(pause).await;
        }
    }
}

/// What is said of a store with such a member.
fn too_old(OldMember { name, version, least }: &OldMember) -> String {
    format!(
        "the member {name} of the pool's store is etcd {version}, which may answer with an old state (etcd issue 20418): update it to \
         {least} or later"
    )
}
