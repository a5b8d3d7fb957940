//! What the tests of this suite share: one control plane for all of them.

use kubexen_testbed::control_plane::{ControlPlane, Options};
use tokio::sync::OnceCell;

/// The suite's control plane, started by the first test that asks.
///
/// libtest never drops statics; that nothing is left when the suite's process ends is the control plane's own doing.
pub async fn control_plane() -> &'static ControlPlane {
    static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
    SHARED
        .get_or_try_init(async || ControlPlane::start(&Options::default()).await)
        .await
        .expect("the control plane starts")
}
