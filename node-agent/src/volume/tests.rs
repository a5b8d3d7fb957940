//! The policy of volumes.

use super::decide::{Observed, Plan, decide};
use kubexen_crds::virtual_disk::Reclaim;
use proptest::prelude::*;

fn observed() -> Observed {
    Observed {
        deleting: false,
        reclaim: Reclaim::Delete,
        wanted: 4096,
        present: None,
        attached: false,
        made_before: false,
        told_size: false,
        user: None,
    }
}

#[test]
fn a_new_volume_is_made_and_one_that_grew_is_grown() {
    assert_eq!(decide(&observed()), Plan::Create(4096));
    assert_eq!(decide(&Observed { present: Some(512), ..observed() }), Plan::Grow(4096));
    assert_eq!(decide(&Observed { present: Some(4096), ..observed() }), Plan::Settled);
    assert_eq!(decide(&Observed { present: Some(8192), ..observed() }), Plan::Settled);
}

#[test]
fn a_device_that_may_not_have_learnt_the_size_is_told_once_more() {
    let grown = Observed { present: Some(4096), attached: true, ..observed() };
    assert_eq!(decide(&grown), Plan::Grow(4096));
    assert_eq!(decide(&Observed { told_size: true, ..grown.clone() }), Plan::Settled);
    assert_eq!(decide(&Observed { attached: false, ..grown }), Plan::Settled);
}

#[test]
fn lost_data_is_reported_and_never_replaced_by_a_blank_volume() {
    assert_eq!(decide(&Observed { made_before: true, ..observed() }), Plan::ReportMissing);
}

#[test]
fn data_is_deleted_only_when_nobody_uses_it_and_it_is_detached() {
    let gone = Observed { deleting: true, present: Some(4096), ..observed() };
    let used = Observed { user: Some("shop.web".to_owned()), attached: true, ..gone.clone() };
    assert_eq!(decide(&used), Plan::WaitForUser("shop.web".to_owned()));
    assert_eq!(decide(&Observed { attached: true, ..gone.clone() }), Plan::Detach);
    assert_eq!(decide(&gone), Plan::Delete);
    assert_eq!(decide(&Observed { present: None, ..gone }), Plan::LetGo);
}

proptest! {
    #[test]
    fn retained_data_is_never_deleted(deleting: bool, attached: bool, used: bool, there: bool) {
        let seen = Observed {
            deleting,
            reclaim: Reclaim::Retain,
            attached,
            user: used.then(|| "a.b".to_owned()),
            present: there.then_some(4096),
            ..observed()
        };
        prop_assert_ne!(decide(&seen), Plan::Delete);
    }
}
