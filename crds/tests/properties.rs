//! Properties of the values that stand in the API.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kubexen_crds::{
    ByteQuantity, TimeSpan,
    condition::{self, State, Wanted},
};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_quantity_made_from_bytes_says_these_bytes(bytes: u64) {
        prop_assert_eq!(ByteQuantity::from_bytes(bytes).bytes(), Ok(bytes));
    }

    #[test]
    fn a_quantity_made_from_bytes_has_the_largest_unit_that_loses_nothing(gibibytes in 1_u64..1024) {
        prop_assert_eq!(ByteQuantity::from_bytes(gibibytes << 30), ByteQuantity(format!("{gibibytes}Gi")));
    }

    #[test]
    fn no_text_makes_a_quantity_or_a_time_span_panic(text in ".{0,24}") {
        let _ = ByteQuantity(text.clone()).bytes();
        let _ = TimeSpan(text).duration();
    }

    #[test]
    fn every_quantity_that_the_schema_accepts_is_understood_unless_it_is_too_large(
        number in 0_u64..1_000_000_000_000_000,
        (suffix, factor) in proptest::sample::select(vec![
            ("", 1_u64), ("k", 1000), ("M", 1000_u64.pow(2)), ("G", 1000_u64.pow(3)), ("T", 1000_u64.pow(4)),
            ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40),
        ]),
    ) {
        prop_assert_eq!(ByteQuantity(format!("{number}{suffix}")).bytes().ok(), number.checked_mul(factor));
    }

    #[test]
    fn every_time_span_that_the_schema_accepts_is_understood(
        hours in proptest::option::of(0_u64..=9999),
        minutes in proptest::option::of(0_u64..=99999),
        seconds in proptest::option::of(0_u64..=999_999),
    ) {
        prop_assume!(hours.is_some() || minutes.is_some() || seconds.is_some());
        let part = |number: Option<u64>, unit: &str| number.map(|number| format!("{number}{unit}")).unwrap_or_default();
        let text = [part(hours, "h"), part(minutes, "m"), part(seconds, "s")].concat();
        let expected = hours.unwrap_or(0) * 3600 + minutes.unwrap_or(0) * 60 + seconds.unwrap_or(0);
        prop_assert_eq!(TimeSpan(text).duration().map(|span| span.as_secs()), Ok(expected));
    }

    #[test]
    fn setting_the_same_conditions_again_changes_nothing(wanted in wanted(), first in instant(), later in instant()) {
        let before = condition::set(&[], wanted.clone(), Some(1), first);
        prop_assert_eq!(&condition::set(&before, wanted, Some(1), later), &before);
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status(
        old in wanted(), new in wanted(), first in instant(), later in instant()
    ) {
        let before = condition::set(&[], old, Some(1), first);
        let after = condition::set(&before, new, Some(2), later);
        for condition in &after {
            let same = condition::find(&before, &condition.type_).filter(|old| old.status == condition.status);
            let expected = same.map_or(later, |old| old.last_transition_time.0);
            prop_assert_eq!(condition.last_transition_time.0, expected);
            prop_assert_eq!(condition.observed_generation, Some(2));
        }
    }

    #[test]
    fn conditions_are_sorted_and_fit_the_schema(wanted in wanted(), now in instant()) {
        let conditions = condition::set(&[], wanted, None, now);
        let types: Vec<&str> = conditions.iter().map(|condition: &Condition| condition.type_.as_str()).collect();
        prop_assert!(types.is_sorted());
        prop_assert!(conditions.iter().all(|condition| condition.message.chars().count() <= 2048));
    }
}

/// Some of three conditions, each once, with messages around the limit of their length.
fn wanted() -> impl Strategy<Value = Vec<Wanted>> {
    let one = |type_: &'static str| {
        let state = prop_oneof![Just(State::True), Just(State::False), Just(State::Unknown)];
        proptest::option::of((state, "[a-zä€]{0,8}", 0_usize..500)).prop_map(move |parts| {
            parts.map(|(state, text, times)| Wanted::new(type_, state, "Reason", text.repeat(times)))
        })
    };
    (one("Scheduled"), one("Ready"), one("Synchronized"))
        .prop_map(|(first, second, third)| [first, second, third].into_iter().flatten().collect())
}

fn instant() -> impl Strategy<Value = Timestamp> {
    (0_i64..4_000_000_000)
        .prop_map(|second| Timestamp::from_second(second).expect("within the range of timestamps"))
}

#[test]
fn text_that_is_no_quantity_or_time_span_is_refused() {
    for text in ["", "Gi", "1.5Gi", "-1", "+1", "1 Gi", "1gi", "0x10", "999999999999999Ti"] {
        assert!(ByteQuantity(text.to_owned()).bytes().is_err(), "{text:?} was taken for a quantity");
    }
    for text in ["", "60", "s", "1.5s", "-1s", "+1s", "1s1m", "1d", "1h 1m"] {
        assert!(TimeSpan(text.to_owned()).duration().is_err(), "{text:?} was taken for a time span");
    }
}
