//! What the record of the epoch says, and what a client remembers beside it.

use super::*;

fn record(number: u64, cluster: Option<u64>) -> Entry {
    record_after(number, cluster, None)
}

fn record_after(number: u64, cluster: Option<u64>, after: Option<u64>) -> Entry {
    let seen = Trust::default().look((0, 1), None, 0, Instant::now());
    let transaction = beginning(Epoch { number, cluster }, &Standing { after, ..seen });
    let Some(Write::Put { value, .. }) = transaction.writes.into_iter().next() else { panic!("no put") };
    Entry { value, mod_revision: 3 }
}

#[test]
fn the_layout_of_the_value_is_the_one_that_other_versions_read() {
    let text = |number, cluster| String::from_utf8(record(number, cluster).value).unwrap();
    assert_eq!(text(2, Some(0xab)), r#"{"version":1,"number":2,"cluster":"ab"}"#);
    assert_eq!(text(2, None), r#"{"version":1,"number":2}"#);
    let after = record_after(2, Some(0xab), Some(0xcd));
    assert_eq!(after.value, br#"{"version":1,"number":2,"cluster":"ab","after":"cd"}"#);
    let epoch = Epoch { number: 2, cluster: Some(0xab) };
    assert_eq!(decode(&after), (epoch, Some(0xcd)));
    for bad in ["", "{}", r#"{"version":2,"number":2,"cluster":"ab"}"#] {
        let entry = Entry { value: bad.into(), mod_revision: 3 };
        assert_eq!(decode(&entry).0.cluster, None, "{bad}");
    }
    assert_eq!((epoch.to_string().as_str(), Epoch::parse("2-ab")), ("2-ab", Some(epoch)));
    assert_eq!(Epoch::parse("ab"), None);
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_record_names_another_cluster_is_frozen_for_those_who_remember_nothing() {
    let mut trust = Trust::default();
    let now = Instant::now();
    for (cluster, current) in [(Some(1), true), (Some(2), false), (None, false)] {
        let standing = trust.look((1, 10), Some(&record(1, cluster)), 0, now);
        assert_eq!(standing.is_current(), current, "{cluster:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_remembers_finds_a_restore_that_the_record_does_not_show() {
    let now = Instant::now();
    let known = || {
        let mut trust = Trust::default();
        assert!(trust.look((1, 10), Some(&record(2, Some(1))), 0, now).is_current());
        trust
    };
    let current = |mut trust: Trust, cluster, revision, entry: Option<&Entry>| {
        trust.look((cluster, revision), entry, 10, now).is_current()
    };
    assert!(current(known(), 1, 500_000, Some(&record(2, Some(1)))), "it is the same");
    assert!(!current(known(), 1, 9, Some(&record(2, Some(1)))), "its revision went back");
    assert!(!current(known(), 1, 1_000_000_010, Some(&record(2, Some(1)))), "its revision leapt");
    assert!(!current(known(), 3, 10, None), "it is empty");
    assert!(!current(known(), 3, 10, Some(&record(1, Some(3)))), "its number went back");
    assert!(current(known(), 3, 10, Some(&record_after(3, Some(3), Some(1)))), "it was confirmed since");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_at_work_elsewhere_is_not_followed_nor_written_to_whatever_its_number() {
    let now = Instant::now();
    for number in [1, 2, 3] {
        for after in [None, Some(7)] {
            let mut trust = Trust::default();
            assert!(trust.look((1, 10), Some(&record(2, Some(1))), 0, now).is_current());
            let other = trust.look((3, 10), Some(&record_after(number, Some(3), after)), 10, now);
            assert_eq!((other.instead_of, other.broken), (Some(1), false), "{other:?}");
            assert!(!other.is_current() && !trust.admits(3, 11, 0, now));
            assert!(trust.look((1, 11), Some(&record(2, Some(1))), 10, now).is_current(), "it is back");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_frozen_before_its_eyes_is_followed_by_a_client_once_it_is_confirmed() {
    let now = Instant::now();
    for recalls in [false, true] {
        let mut trust = Trust::default();
        match recalls {
            true => trust.recall(Epoch { number: 2, cluster: Some(1) }, now),
            false => assert!(trust.look((1, 10), Some(&record(2, Some(1))), 0, now).is_current()),
        }
        let copy = trust.look((3, 20), Some(&record(2, Some(1))), 0, now);
        assert!(!copy.is_current() && !copy.broken && copy.instead_of.is_none(), "{copy:?}");
        assert!(trust.look((3, 21), Some(&record(3, Some(3))), 20, now).is_current());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_worked_with_a_store_without_a_record_does_not_follow_a_first_epoch_elsewhere() {
    let now = Instant::now();
    let known = || {
        let mut trust = Trust::default();
        assert!(trust.look((1, 10), None, 0, now).is_current());
        trust
    };
    let look = |entry: Option<&Entry>, cluster| known().look((cluster, 20), entry, 10, now);
    assert!(look(Some(&record(1, Some(1))), 1).is_current(), "it begins");
    let another = look(Some(&record(1, Some(2))), 2);
    assert_eq!(another.instead_of, Some(1), "it begins in another one, which nobody knows to be a copy");
    assert!(look(None, 1).is_current(), "it is not on record yet");
    let copy = look(None, 2);
    assert!(copy.broken);
    assert_eq!(copy.nowhere().number, 2, "what an operator confirms is no first epoch");
    let frozen = beginning(copy.nowhere(), &copy);
    let Some(Write::Put { value, .. }) = frozen.writes.into_iter().next() else { panic!("no put") };
    let frozen = Entry { value, mod_revision: 3 };
    assert_eq!(decode(&frozen).1, Some(1), "those who recall the first one know by that whose place it took");
    assert!(look(Some(&record_after(2, Some(2), Some(1))), 2).is_current(), "it was confirmed since");
    let stays = Standing { cluster: 1, known: Some(1), after: Some(9), ..copy };
    let Some(Write::Put { value, .. }) = beginning(stays.nowhere(), &stays).writes.into_iter().next() else {
        panic!("no put")
    };
    assert_eq!(decode(&Entry { value, mod_revision: 3 }).1, Some(9), "as it was said when it was confirmed");
    let mut begun = known();
    assert!(begun.look((1, 20), Some(&record(1, Some(1))), 10, now).is_current());
    assert!(begun.look((1, 30), None, 20, now).broken, "what was on record is gone");
}

#[tokio::test(start_paused = true)]
async fn who_recalls_a_store_heeds_no_other_that_is_not_made_of_it_and_writes_nothing_there() {
    let now = Instant::now();
    for seen_as in [Epoch { number: 0, cluster: Some(1) }, Epoch { number: 2, cluster: Some(1) }] {
        let look = |cluster, entry: Option<Entry>| {
            let mut trust = Trust::default();
            trust.recall(seen_as, now);
            trust.look((cluster, 10), entry.as_ref(), 0, now)
        };
        let own = (seen_as.number > 0).then(|| record(seen_as.number, Some(1)));
        assert!(look(1, own.clone()).is_current(), "it is the same");
        let other = |standing: Standing| {
            assert_eq!((standing.instead_of, standing.broken), (Some(1), false), "{standing:?}");
            assert!(!standing.is_current());
        };
        other(look(3, None));
        other(look(3, Some(record(1, Some(3)))));
        other(look(3, Some(record(1, Some(4)))));
        other(look(3, Some(record(7, Some(3)))));
        other(look(3, Some(record_after(7, Some(3), Some(4)))));
        let copy = look(3, Some(record(1, Some(1))));
        assert!(!copy.is_current() && copy.instead_of.is_none(), "it is made of a backup: {copy:?}");
        let after = |number, cluster| look(3, Some(record_after(number, cluster, Some(1))));
        assert!(after(3, Some(3)).is_current(), "it was confirmed since");
        let frozen = after(3, None);
        assert!(!frozen.is_current() && frozen.instead_of.is_none(), "it took its place: {frozen:?}");
        let lost = look(1, (seen_as.number == 0).then(|| record(1, Some(3))));
        assert!(
            !lost.is_current() && lost.instead_of.is_none(),
            "it is the same, and lost its record: {lost:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_overtaken_by_the_next_epoch_is_no_break() {
    let now = Instant::now();
    let mut trust = Trust::default();
    trust.look((1, 10), Some(&record(2, Some(1))), 0, now);
    for old in [None, Some(record(1, Some(1))), Some(record(1, None))] {
        assert!(!trust.look((1, 9), old.as_ref(), 8, now).broken);
        assert!(trust.admits(1, 10, 10, now));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_seen_a_break_believes_nothing_before_the_next_epoch() {
    let now = Instant::now();
    let mut trust = Trust::default();
    trust.look((1, 10), Some(&record(1, Some(1))), 11, now);
    assert!(trust.admits(1, 11, 10, now));
    assert!(trust.admits(1, 10, 10, now), "answers overtake each other");
    assert!(!trust.admits(1, 10, 11, now), "it was sent after the newer one had come");
    assert!(trust.look((1, 5), Some(&record(1, Some(1))), 11, now).broken);
    assert!(!trust.admits(1, 20, 11, now));
    assert!(trust.look((1, 20), Some(&record(1, Some(1))), 11, now).broken);
    assert!(trust.look((1, 21), Some(&record(2, Some(1))), 11, now).is_current());
    assert!(trust.admits(1, 22, 21, now));
    assert!(!trust.look((1, 23), Some(&record(2, None)), 11, now).is_current());
    assert!(!trust.admits(1, 24, 23, now), "it was made to say so");
}
